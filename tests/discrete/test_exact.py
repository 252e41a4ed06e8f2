"""Every sampler's law by exact enumeration, against closed forms and the golden table."""

from itertools import permutations

import pytest
import torch
from torch.testing import assert_close

import fairlead as fl
from fairlead.discrete import Masked, MaskedUniform, Rates, Uniform
from fairlead.exact import GOLDEN, TokenTable, golden_tokens, token_law

TOY = golden_tokens()
C, U = {"label": 0}, {"label": 2}
MASKED = TOY.denoiser(Masked(2, eps=0.0))
UNIFORM = TOY.denoiser(Uniform(2, eps=0.0))
ROUNDED = {"rtol": 0, "atol": 6e-7}  # the golden numbers have six digits


def law(guide, sampler="ancestral", steps=16, condition=C, denoiser=MASKED, **options):
    out = token_law(denoiser, condition, guide=guide, sampler=sampler, steps=steps, **options)
    if denoiser.process.mask is None:
        return out
    clean = out.reshape(3, 3)[:2, :2].flatten()
    assert_close(clean.sum(), torch.tensor(1.0).double())  # no mask is left
    return clean


def golden(row, w):
    return torch.tensor(GOLDEN[row][w], dtype=torch.float64)


def classifiers(process, label=0):
    return {"energies": {"classifier": TOY.classifier(process, label)}}


@pytest.mark.parametrize("w", [2.0, 3.0])
def test_closed_forms_of_the_table(w):
    assert_close(TOY.tilted(w, 0), golden("tilt", w), **ROUNDED)
    assert_close(TOY.ordered(w, 0, (0, 1)), golden("left to right", w), **ROUNDED)
    assert_close(TOY.ordered(w, 0, (1, 0)), golden("right to left", w), **ROUNDED)
    both = (TOY.ordered(w, 0, (0, 1)) + TOY.ordered(w, 0, (1, 0))) / 2
    assert_close(both, golden("masked", w), **ROUNDED)


@pytest.mark.parametrize("sampler", ["ancestral", "unmask", "rates(normalise='column')"])
@pytest.mark.parametrize("w", [2.0, 3.0])
def test_masked_tempering_is_a_mixture_with_both_tokens_at_once(sampler, w):
    steps = 16
    first = law(f"cfg({w})", sampler, 1)  # both in one step
    expected = first / steps + (1 - 1 / steps) * golden("masked", w)
    assert_close(law(f"cfg({w})", sampler, steps), expected, **ROUNDED)


def test_documented_row_of_sixteen_steps():
    expected = torch.tensor([0.749832, 0.067342, 0.028594, 0.154232]).double()
    assert_close(law("cfg(2)"), expected, **ROUNDED)


@pytest.mark.parametrize("sampler", ["ancestral", "rates", "unmask", "rates(method='euler')"])
def test_one_branch_at_the_ends(sampler):
    steps = 64
    for w, label in ((1.0, 0), (0.0, 2)):
        both = law(f"cfg({w})", sampler, 1, {"label": 0})
        limit = TOY.laws[label]
        assert_close(law(f"cfg({w})", sampler, steps), both / steps + (1 - 1 / steps) * limit)


def test_uniform_tempering_of_the_posterior_converges():
    out = law("cfg(2)", steps=400, denoiser=UNIFORM)
    assert_close(
        out, torch.tensor([0.78529, 0.04444, 0.00832, 0.16194]).double(), rtol=0, atol=6e-6
    )
    plain = law("cfg(1)", steps=400, denoiser=UNIFORM)
    assert_close(plain, TOY.laws[0], rtol=0, atol=1e-3)  # the error is of order 1/T


def test_raw_rates():
    out = law("cfg(2)", "rates(method='euler')", 100)
    expected = torch.tensor([0.75899, 0.05867, 0.02369, 0.15865]).double()
    assert_close(out, expected, rtol=0, atol=6e-6)
    for w in (2.0, 3.0):
        coarse, fine = (law(f"cfg({w})", "rates", n) for n in (128, 256))
        assert_close(2 * fine - coarse, golden("rates", w), rtol=0, atol=1e-5)  # extrapolated


@pytest.mark.parametrize("w", [2.0, 3.0])
def test_raw_row_weighs_the_orders_by_their_normalisers(w):
    c, u = (TOY.laws[i].reshape(2, 2) for i in (0, 2))
    z = [(c.sum(1 - i) ** w * u.sum(1 - i) ** (1 - w)).sum() for i in (0, 1)]
    rows = [TOY.ordered(w, 0, order) for order in ((0, 1), (1, 0))]
    expected = (z[0] * rows[0] + z[1] * rows[1]) / (z[0] + z[1])
    assert_close(expected, golden("rates", w), **ROUNDED)


def test_uniform_tempering_converges_at_the_rate_of_the_step():
    # the first entry at 400 and 800 steps; the catalogue has six digits
    for steps, expected in ((400, 0.785290), (800, 0.785375)):
        out = law("cfg(2)", steps=steps, denoiser=UNIFORM)
        assert out[0].item() == pytest.approx(expected, abs=6e-7)


@pytest.mark.parametrize("w", [1.0, 2.0, 4.0])
def test_tempering_the_whole_posterior_changes_what_is_written(w):
    # one step of one token: u Z / (u Z + 1 - u) in place of u
    c, u = torch.tensor([0.7, 0.3]).double(), torch.tensor([0.4, 0.6]).double()
    d = TokenTable(torch.stack([c, 2 * u - c]), torch.tensor([0.5, 0.5])).denoiser(
        Masked(2, eps=0.0)
    )
    levels = [d.process.level(v) for v in (1.0, 0.6)]
    total = (c**w * u ** (1 - w)).sum().item()
    for space, share in (("clean", 0.4), ("posterior", 0.4 * total / (0.4 * total + 0.6))):
        out = token_law(d, C, guide=f"cfg({w})", levels=levels, space=space)
        assert out[:2].sum().item() == pytest.approx(share)


@pytest.mark.parametrize("eta", [1.0, 5.0])
def test_predictor_is_predictor_free_where_masks_come_back(eta):
    guide, sampler = "dcbg('classifier', 2, order='exact')", f"rates(eta={eta})"
    mine = law(guide, sampler, 40, U, **classifiers(MASKED.process))
    assert_close(mine, law("cfg(2)", sampler, 40), rtol=0, atol=1e-6)
    # and at w = 1 the law is p(x | y), up to what the last step answers at once
    plain = "dcbg('classifier', 1, order='exact')"
    few, many = (law(plain, sampler, n, U, **classifiers(MASKED.process)) for n in (100, 200))
    assert_close(2 * many - few, TOY.laws[0], rtol=0, atol=3e-3)


def test_raw_rates_write_faster_and_columns_do_not(monkeypatch):
    monkeypatch.setattr(Rates, "finish", lambda self, model, z, t, draws: z)  # keep the masks
    walk = MASKED.process.grid(400)[:201]
    column = "rates(normalise='column')"
    for sampler, w, expected in (
        ("rates", 2, 0.458706),
        ("rates", 3, 0.391013),
        (column, 2, 0.5),
        (column, 3, 0.5),
    ):
        out = token_law(MASKED, C, guide=f"cfg({w})", sampler=sampler, levels=walk)
        states = out.reshape(3, 3)
        share = (states.sum(1)[2] + states.sum(0)[2]) / 2
        assert_close(share.item(), expected, rtol=0, atol=3e-4)


def test_predictor_is_predictor_free_for_the_exact_classifier():
    for w in (1, 2):
        guide = f"dcbg('classifier', {w}, order='exact')"
        mine = law(guide, "rates", 32, U, **classifiers(MASKED.process))
        assert_close(mine, law(f"cfg({w})", "rates", 32), rtol=0, atol=1e-6)
        posterior = law(guide, condition=U, space="posterior", **classifiers(MASKED.process))
        assert_close(posterior, law(f"cfg({w})", space="posterior"), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("eta", "guide_remask", "w", "expected"),
    [
        (1, False, 2, [0.7630, 0.0547, 0.0238, 0.1585]),
        (5, False, 2, [0.7678, 0.0519, 0.0249, 0.1555]),
        (1, True, 1, [0.6817, 0.0753, 0.0495, 0.1935]),
        (5, True, 1, [0.7472, 0.0572, 0.0298, 0.1658]),
    ],
)
def test_masking_again(eta, guide_remask, w, expected):
    guide = f"dcbg('classifier', {w}, order='exact')"
    sampler = f"rates(eta={eta}, guide_remask={guide_remask})"
    coarse, fine = (law(guide, sampler, n, U, **classifiers(MASKED.process)) for n in (100, 200))
    # what the last step leaves masked is answered at once: an error of order eta / T
    assert_close(2 * fine - coarse, torch.tensor(expected).double(), rtol=0, atol=3e-3)


def test_late_guidance_cannot_undo_masked_tokens_but_uniform_ones():
    posterior = TOY.laws[0] * 0.5 / TOY.laws[2]
    for gamma, masked, uniform in ((5, 0.684, 0.802), (20, 0.692, 0.854)):
        guide = f"dcbg('classifier', {gamma}, order='exact') | interval(0.5, 1.0)"
        for d, number in ((MASKED, masked), (UNIFORM, uniform)):
            options = {"space": "posterior", **classifiers(d.process)}
            out = law(guide, steps=64, condition=U, denoiser=d, **options)
            assert_close((out @ posterior).item(), number, rtol=0, atol=6e-4)


def test_first_order_is_exact_where_the_classifier_is_linear():
    weights = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).double()

    class Linear(fl.energy.Energy):
        noisy = True
        name = "linear"

        def __call__(self, z, level=None):
            if not z.is_floating_point():
                z = torch.nn.functional.one_hot(z, 3).double()
            return -(z.double() * weights).sum((1, 2))

    out = [
        law(
            f"dcbg('linear', 1.5, order='{order}')",
            condition=U,
            space="posterior",
            energies={"linear": Linear()},
        )
        for order in ("first", "exact")
    ]
    assert_close(*out)


@pytest.mark.parametrize(
    "sampler",
    ["maskgit(order='random')", "vq(per=1, leftover=False)", "vq('purity', sharpen=0, per=1)"],
)
def test_one_token_an_evaluation_is_tokenwise_guidance(sampler):
    steps = 3 if sampler.startswith("vq") else 2
    for w in (1.0, 2.0):
        out = law(f"cfg({w})", sampler, steps)
        if w == 1:
            assert_close(out, TOY.laws[0])
        elif "purity" in sampler:  # the surer position first: between the two orders
            lo, hi = sorted((GOLDEN["left to right"][w][0], GOLDEN["right to left"][w][0]))
            assert lo < out[0] < hi
        else:
            assert_close(out, golden("masked", w), **ROUNDED)


def test_all_masks_in_one_round_are_independent_draws():
    marginals = [TOY.laws[row].reshape(2, 2) for row in (0, 2)]
    parts = []
    for dim in (1, 0):
        c, u = (m.sum(dim) for m in marginals)
        p = c**2 / u
        parts.append(p / p.sum())
    expected = torch.outer(*parts).flatten()
    for sampler in ("maskgit", "unmask", "ancestral", "unmask(order='confidence')"):
        assert_close(law("cfg(2)", sampler, 1), expected)


def test_confidence_writes_the_surer_token_first():
    table = TokenTable(torch.tensor([[[0.49, 0.01], [0.01, 0.49]]]), torch.ones(1))
    d = table.denoiser(Masked(2, eps=0.0))
    out = token_law(d, {"label": 0}, sampler="maskgit(temperature=0)", steps=2)
    assert_close(out.reshape(3, 3)[:2, :2].flatten(), table.laws[0])


def test_random_order_is_the_average_over_all_orders():
    g = torch.Generator().manual_seed(3)
    joint = torch.rand(2, 2, 2, 2, generator=g).double() + 0.05
    joint = joint / joint.flatten(1).sum(1).reshape(2, 1, 1, 1)
    table = TokenTable(joint, torch.tensor([0.5, 0.5]))
    d = table.denoiser(Masked(2, eps=0.0))
    out = token_law(d, C, guide="cfg(3)", sampler="vq(per=1, leftover=False)", steps=2)
    clean = out.reshape(3, 3, 3)[:2, :2, :2].flatten()
    orders = [table.ordered(3.0, 0, order) for order in permutations(range(3))]
    assert_close(clean, torch.stack(orders).mean(0))


def test_mixture_posterior_of_masks_and_noise_is_exact():
    d = TOY.denoiser(MaskedUniform(2, steps=200))
    out = token_law(d, C, steps=200).reshape(3, 3)[:2, :2].flatten()
    assert_close(out, TOY.laws[0], rtol=0, atol=2e-3)  # both tokens at once: of order 1/T


def test_best_of_meets_the_tilt_with_the_exact_value():
    reward = torch.tensor([1.0, 0.0, 0.5, -1.0]).double()
    lam, steps = 0.5, 3
    base = law("none", steps=steps, condition=U)
    tilt = base * (reward / lam).exp()
    tilt = tilt / tilt.sum()

    def of(z):
        return reward[z[:, 0] * 2 + z[:, 1]]

    def distance(sampler, **options):
        return (law("none", sampler, steps, U, **options) - tilt).abs().sum().item() / 2

    far = [distance(f"best_of(m={m}, lam={lam})", rewards={"reward": of}) for m in (1, 2, 3)]
    assert far[0] > 2 * far[1] > 2.2 * far[2]
    for lam in (0.0, 0.5):  # the first of equals is kept, or any
        constant = law(
            "none", f"best_of(m=2, lam={lam})", 2, U, rewards={"reward": lambda z: z[:, 0] * 0.0}
        )
        assert_close(constant, law("none", steps=2, condition=U))


class SoftValue(fl.energy.Energy):
    """`-lam log E exp(r / lam)` of what the ancestral sampler makes of tokens at a level."""

    noisy, name = True, "value"

    def __init__(self, reward, lam, steps):
        self.reward, self.lam, self.steps = reward, lam, steps

    def __call__(self, z, level=None):
        done = round((1 - level.t) * self.steps)
        walk = MASKED.process.grid(self.steps)[done:]
        values = []
        for row in z:
            if len(walk) > 1:
                end = token_law(MASKED, U, levels=walk, z=row)
            else:
                end = torch.zeros(9).double()
                end[row[0] * 3 + row[1]] = 1.0
            ends = end.reshape(3, 3)[:2, :2].flatten()
            values.append(-self.lam * (ends @ (self.reward / self.lam).exp()).log())
        return torch.stack(values)


def test_best_of_with_the_exact_value_has_the_published_distances():
    reward, lam, steps = torch.tensor([1.0, 0.0, 0.5, -1.0]).double(), 0.5, 8
    base = law("none", steps=steps, condition=U)
    tilt = base * (reward / lam).exp()
    tilt = tilt / tilt.sum()
    assert_close(tilt, torch.tensor([0.7186, 0.0429, 0.2310, 0.0075]).double(), rtol=0, atol=6e-5)
    known = {}

    class Remembered(SoftValue):
        def __call__(self, z, level=None):
            key = (tuple(z.flatten().tolist()), level.t)
            if key not in known:
                known[key] = super().__call__(z, level)
            return known[key]

    energies = {"value": Remembered(reward, lam, steps)}
    for m, expected in ((1, 0.371), (2, 0.153)):
        sampler = f"best_of('value', m={m}, lam={lam}, value='given')"
        out = law("none", sampler, steps, U, energies=energies)
        gap = (out - tilt).abs().sum().item() / 2
        assert gap == pytest.approx(expected, abs=0.005)  # 100,000 samples there


def test_best_of_can_take_the_likeliest_in_the_last_step():
    sampler = "best_of(m=1, last='argmax')"
    one = law("none", sampler, 1, U, rewards={"reward": lambda z: z[:, 0] * 0.0})
    marginals = TOY.laws[2].reshape(2, 2)
    best = marginals.sum(1).argmax() * 2 + marginals.sum(0).argmax()
    assert one[best] == 1


@pytest.mark.parametrize("form", ["joint", "mixture"])
@pytest.mark.parametrize("process", [Masked(3), Uniform(3), MaskedUniform(3, steps=10)])
def test_posteriors_are_those_of_bayes_for_a_known_token(process, form):
    s, t = process.level(0.7), process.level(0.4)
    size = process.size
    a_s, a_t, c_s, c_t = (float(f(v.t)) for f in (process.a, process.c) for v in (s, t))
    keep, mask = a_s / a_t, 1 - (1 - c_s) / (1 - c_t)
    q = torch.zeros(size, size, dtype=torch.float64)
    q[:3, :3] = keep * torch.eye(3) + (1 - keep - mask) / 3
    if process.mask is not None:
        q[:3, 3], q[3, 3] = mask, 1
    for i in range(size):
        for x in range(3):
            prior = torch.full((size,), (1 - a_t - c_t) / 3, dtype=torch.float64)
            prior[x] += a_t
            if process.mask is not None:
                prior[3] = c_t
            p = prior * q[:, i]
            if p.sum() < 1e-9:
                continue
            log_x = torch.full((1, 1, 3), -1e6).double()
            log_x[..., x] = 0
            out = process.log_posterior(log_x, torch.tensor([[i]]), s, t, form)
            assert_close(out.exp()[0, 0], p / p.sum(), rtol=1e-6, atol=1e-9)


def test_forms_agree_where_tokens_are_only_masked():
    process = Masked(3)
    s, t = process.level(0.7), process.level(0.4)
    log_x = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0)).double()
    z = torch.randint(4, (5, 2), generator=torch.Generator().manual_seed(1))
    joint, mixture = (
        process.log_posterior(log_x.log_softmax(-1), z, s, t, form).exp()
        for form in ("joint", "mixture")
    )
    mixture = mixture / mixture.sum(-1, keepdim=True)  # a token that shows has no other past
    assert_close(joint, mixture)


def test_mixture_of_masks_and_noise_is_the_exact_reverse_marginal():
    g = torch.Generator().manual_seed(4)
    joint = torch.rand(1, 2, 2, generator=g).double() + 0.1
    table = TokenTable(joint / joint.sum(), torch.ones(1))
    process = MaskedUniform(2, steps=10)
    s, t = process.level(0.7), process.level(0.6)
    a_s, a_t, c_s, c_t = (float(f(v.t)) for f in (process.a, process.c) for v in (s, t))
    keep, hide = a_s / a_t, 1 - (1 - c_s) / (1 - c_t)
    q = torch.zeros(3, 3).double()
    q[:2, :2] = keep * torch.eye(2) + (1 - keep - hide) / 2
    q[:2, 2], q[2, 2] = hide, 1
    states = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    lik = process.likelihood(states, t.t)  # q(z_t | x) by token
    prior = torch.stack(
        [lik[:, 0][:, x[0]] * lik[:, 1][:, x[1]] * p for x, p in zip(*sized(table), strict=True)]
    ).sum(0)
    back = q[states[:, 0]][:, states[:, 0]] * q[states[:, 1]][:, states[:, 1]]  # [t, s]
    full = prior[:, None] * back
    full = full / full.sum(0)
    exact = torch.stack([full[states[:, 0] == k].sum(0) for k in range(3)], -1)
    log_x = table.denoiser(process)(states, s, {"label": 0})
    out = process.log_posterior(log_x, states, s, t).exp()[:, 0]
    assert_close(out, exact, rtol=1e-6, atol=1e-8)


def sized(table):
    return table.sequences, table.laws[0]


def test_forms_on_two_ternary_tokens():
    g = torch.Generator().manual_seed(1)
    joint = torch.rand(1, 3, 3, generator=g).double()
    table = TokenTable(joint / joint.sum(), torch.ones(1))
    process = Uniform(3, eps=0.0)
    s, t = process.level(0.6), process.level(0.3)
    z = table.sequences
    lik_s, lik_t = (process.likelihood(z, v.t) for v in (s, t))
    x = table.sequences

    def weights(lik):
        return torch.stack([lik[:, i][:, x[:, i]] for i in range(2)], -1).prod(-1)

    # the exact law of token 0 at t given both tokens at s
    kept = (1 - 0.6) / (1 - 0.3)
    step = kept * torch.eye(3).double() + (1 - kept) / 3
    joint_t = weights(lik_t) @ table.laws[0]  # q(z_t), by sequence
    back = torch.stack([step[z[:, i]][:, z[:, i]] for i in range(2)], -1).prod(-1)  # [t, s]
    full = (joint_t[:, None] * back) / (joint_t[:, None] * back).sum(0)
    exact = torch.stack([full[z[:, 0] == k].sum(0) for k in range(3)], -1)
    leave_one_out = table.denoiser(process).within("clean")(z, s, {"label": 0})
    posterior = torch.log_softmax(leave_one_out + lik_s.log(), -1)
    a = process.log_posterior(leave_one_out, z, s, t, "joint").exp()[:, 0]
    b = process.log_posterior(posterior, z, s, t, "mixture").exp()[:, 0]
    assert_close(a, exact)
    assert_close(b, exact)
    wrong = process.log_posterior(posterior, z, s, t, "joint").exp()[:, 0]
    assert (wrong - exact).abs().max() > 0.01
