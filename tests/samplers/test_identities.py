"""Exact identities: which samplers coincide, and what holds at any step size.

Tolerances of 1e-12 are float64 rounding over some ten steps with values near 1 (near 80 on EDM,
hence relative).
"""

from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from fairlead.samplers import DDIM, PCG, SAMPLERS, DPMpp2M, UniPC, get, noise_of, transfer
from fairlead.schedules import EDM, RectifiedFlow

SOLVERS = [name for name, cls in SAMPLERS.items() if cls.solver]
EXACT = {"rtol": 1e-12, "atol": 1e-12}
ZERO_ALPHA = ("cosine", "rf", "ztsnr")
DETERMINISTIC = [
    "ddim",
    "euler",
    "heun",
    "dpmpp_1s",
    "dpmpp_2s",
    "dpmpp_2m",
    "dpmpp_2m(variant='heun')",
    "dpmpp_2m_sde(eta=0.0)",
    "unipc",
    "unipc(order=3)",
    "unipc(order=3, variant='bh1')",
    "unipc(corrector=False)",
    "pcg(langevin=0)",
]


def start(lab, levels):
    return levels[0].sigma * lab.z


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ddim", "euler"),
        ("ddim", "dpmpp_1s"),
        ("ddim", "euler_ancestral(eta=0)"),
        ("ddim", "pcg(langevin=0)"),
        ("ddim(eta=0.4)", "euler_ancestral(eta=0.4)"),
        ("ddim(eta=1)", "ddpm"),
        ("ddpm", "ddpm(variance=0.0)"),
        ("ddpm('large')", "ddpm(variance=1.0)"),
        ("dpmpp_2m", "dpmpp_2m_sde(eta=0.0)"),
        ("dpmpp_2m(variant='heun')", "dpmpp_2m_sde(eta=0.0, variant='heun')"),
        ("dpmpp_2m", "unipc(corrector=False)"),  # in fewer than 15 steps to sigma = 0
    ],
)
def test_two_names_one_update(lab, schedule, one, other):
    levels = schedule.grid(9)
    runs = [lab.drive(s, lab.data, levels, start(lab, levels), schedule) for s in (one, other)]
    assert_close(*runs, **EXACT)


def test_orders_of_multistep_solvers_coincide_away_from_the_end(lab, schedule):
    """UniPC always lowers the order at the end, 2M below 15 steps only."""
    levels = schedule.grid(20, final="t_min")
    if schedule.spacing == "trailing":
        levels = levels[:15]
    x = start(lab, levels)
    rules = UniPC(corrector=False, lower_order_final=False), DPMpp2M(lower_order_final=False)
    assert_close(*[lab.drive(r, lab.data, levels, x, schedule) for r in rules], **EXACT)


def test_ddim_is_transfer_and_the_universal_euler_step(lab, schedule):
    levels = schedule.grid(7)
    x = start(lab, levels)
    for s, t in pairwise(levels):
        d = lab.data(x, s)
        eps = noise_of(x, d, s)
        stepped = lab.drive("ddim", lab.data, [s, t], x, schedule)
        euler = x + (t.alpha - s.alpha) * d + (t.sigma - s.sigma) * eps
        assert_close(stepped, euler, rtol=1e-12, atol=1e-12 * max(s.sigma, 1))
        assert torch.equal(stepped, transfer(x, lab.Driven(lab.data, schedule, 1)(x, s), s, t))
        x = stepped


def test_heun_is_karras_where_alpha_is_one(lab):
    levels = EDM().grid(8)
    x = y = start(lab, levels)
    for s, t in pairwise(levels):
        d = (y - lab.data(y, s)) / s.sigma
        z = y + (t.sigma - s.sigma) * d
        if t.sigma:
            z = y + (t.sigma - s.sigma) * (d + (z - lab.data(z, t)) / t.sigma) / 2
        y = z
    assert_close(lab.drive("heun", lab.data, levels, x, EDM()), y, rtol=1e-11, atol=1e-11)


def test_heun_is_flow_heun_on_straight_paths(lab):
    levels = RectifiedFlow().grid(8)
    x = y = start(lab, levels)

    def velocity(x, level):
        return (x - lab.data(x, level)) / level.sigma

    for s, t in pairwise(levels):
        u = velocity(y, s)
        z = y + (t.t - s.t) * u
        y = y + (t.t - s.t) * (u + velocity(z, t)) / 2 if t.sigma else z
    assert_close(lab.drive("heun", lab.data, levels, x, RectifiedFlow()), y, **EXACT)


def test_heun_with_churn_starts_from_the_raised_level(lab):
    """Algorithm 2 of the paper, its draws shared, with a window that spares the ends."""
    levels = EDM().grid(10)
    x = y = start(lab, levels)
    noise = lab.Driven(lab.data, EDM(), 10).noise
    for s, t in pairwise(levels):
        hat = s.sigma
        if 0.05 <= s.sigma <= 50:
            hat = s.sigma * (1 + min(3 / 10, 2**0.5 - 1))
            y = y + (hat**2 - s.sigma**2) ** 0.5 * 1.007 * noise(y)
        raised = EDM().level(hat)
        d = (y - lab.data(y, raised)) / hat
        z = y + (t.sigma - hat) * d
        if t.sigma:
            z = y + (t.sigma - hat) * (d + (z - lab.data(z, t)) / t.sigma) / 2
        y = z
    out = lab.drive("heun(3, 0.05, 50, 1.007)", lab.data, levels, x, EDM())
    assert_close(out, y, rtol=1e-11, atol=1e-11)


def test_churn_keeps_the_marginal_on_every_schedule(lab, schedule):
    """The raised sample has the raised level's deviation; 40000 draws, 4 standard errors."""
    s = schedule.level_at(0.3)
    x = lab.data.at(torch.randn(40000, 3, generator=torch.Generator().manual_seed(0)).double(), s)
    model = lab.Driven(lab.data, schedule, 4)
    raised, level = get("heun(churn=1)")._raise(model, x, s)
    assert level.sigma / level.alpha == pytest.approx(1.25 * s.sigma / s.alpha, rel=1e-9)
    tolerance = 4 / (2 * 40000) ** 0.5
    assert_close(raised.std(0) / lab.data.deviation(level), torch.ones(3).double(), rtol=0,
                 atol=tolerance)  # fmt: skip


@pytest.mark.parametrize("text", [*DETERMINISTIC, "heun(churn=2)"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_constant_prediction_is_exact(lab, schedule, text, steps):
    """Ends on `D`; on the way, noise and data stay what they were."""
    d = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    levels = schedule.grid(steps)
    x = levels[0].alpha * d + levels[0].sigma * lab.z

    def constant(x, level):
        return d.expand_as(x)

    assert_close(lab.drive(text, constant, levels, x, schedule), d.expand_as(x), **EXACT)
    if steps > 1 and "churn" not in text:
        t = levels[-2]
        there = lab.drive(text, constant, levels[:-1], x, schedule)
        assert_close(there, t.alpha * d + t.sigma * lab.z, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", SOLVERS)
def test_one_step_gives_the_clean_estimate(lab, schedule, name):
    levels = schedule.grid(1)
    x = start(lab, levels)
    out, model = lab.drive(name, lab.data, levels, x, schedule, whole=True)
    # the exponential form reaches alpha_t D through expm1(-inf) = -1: no rounding either
    assert torch.equal(out, lab.data(x, levels[0]))
    assert len(model.calls) == 1
    assert model.draws == 0


@pytest.mark.parametrize("name", SOLVERS)
def test_evaluations_as_declared(lab, schedule, name):
    levels = schedule.grid(6)
    out, model = lab.drive(name, lab.data, levels, start(lab, levels), schedule, whole=True)
    assert torch.isfinite(out).all()
    expected = 5 * get(name).evaluations + 1
    if name == "dpmpp_2s":
        expected -= levels[0].alpha == 0  # no middle between there and any other level
    assert len(model.calls) == expected


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_and_determinism(lab, schedule, name, dtype):
    levels = schedule.grid(5)

    def predict(x, level):
        return lab.data(x.double(), level).to(x.dtype)

    x = start(lab, levels).to(dtype)
    before = x.clone()
    runs = [lab.drive(name, predict, levels, x, schedule, seed=3) for _ in range(2)]
    assert runs[0].dtype == dtype
    assert torch.equal(*runs)
    assert torch.equal(x, before)
    alone = lab.drive(name, predict, levels, x[:1], schedule, seed=3)
    assert torch.equal(alone, runs[0][:1])


@pytest.mark.parametrize("name", SOLVERS)
def test_float32_is_as_good_as_its_input(lab, schedule, name):
    """Small and large steps alike: coefficients are float64 numbers.

    20 roundings of 6e-8 on values up to 80 that are then divided out by the step; 1e-4 leaves
    room for `(x - alpha D) / sigma` at the lowest level.
    """
    levels = schedule.grid(20)
    x = start(lab, levels)
    double = lab.drive(name, lab.data, levels, x, schedule)

    def predict(x, level):
        return lab.data(x.double(), level).to(x.dtype)

    single = lab.drive(name, predict, levels, x.float(), schedule)
    assert_close(single.double(), double, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "text", ["dpmpp_2m", "dpmpp_2m(variant='heun')", "dpmpp_2m_sde", "unipc", "unipc(order=3)"]
)
def test_cleared_memory_restarts_at_first_order(lab, schedule, text):
    levels = schedule.grid(8)
    x = start(lab, levels)
    model = lab.Driven(lab.data, schedule, 8)
    rule = get(text)
    y = x
    for i, (s, t) in enumerate(pairwise(levels[:4])):
        model.step = i
        y = rule.step(model, y, s, t)
    model.memory.clear()
    model.step = 3
    restarted = rule.step(model, y, levels[3], levels[4])
    again = lab.Driven(lab.data, schedule, 8, draws=model.draws - ("sde" in text))
    first = get("ddpm" if "sde" in text else "ddim")
    assert_close(restarted, first.step(again, y, levels[3], levels[4]), **EXACT)


def test_memory_changes_the_step(lab):
    levels = EDM().grid(8)
    x = start(lab, levels)
    runs = [
        lab.drive(t, lab.data, levels, x, EDM(), between=b)
        for t in ("dpmpp_2m", "unipc")
        for b in (None, lambda model, i: model.memory.clear())
    ]
    ddim = lab.drive(DDIM(), lab.data, levels, x, EDM())
    assert_close(runs[1], ddim, **EXACT)
    assert_close(runs[3], ddim, **EXACT)
    assert (runs[0] - ddim).abs().max() > 1e-3 < (runs[2] - ddim).abs().max()


def test_unipc_does_not_undo_a_change_of_the_sample(lab):
    """Whoever replaces the sample between steps keeps the change; the corrector stands back."""
    levels = EDM().grid(8)
    rule, model = UniPC(), lab.Driven(lab.data, EDM(), 8)
    x = rule.step(model, start(lab, levels), levels[0], levels[1])
    model.step = 1
    changed = x + 1
    out = rule.step(model, changed, levels[1], levels[2])
    plain = UniPC(corrector=False)
    model2 = lab.Driven(lab.data, EDM(), 8)
    plain.step(model2, start(lab, levels), levels[0], levels[1])
    model2.step = 1
    assert torch.equal(out, plain.step(model2, changed, levels[1], levels[2]))


def test_sde_without_noise_is_not_the_ode(lab):
    levels = EDM().grid(10)
    x = start(lab, levels)
    for stochastic, ode in [("dpmpp_2m_sde", "dpmpp_2m"), ("ddpm", "ddim")]:
        still = lab.drive(stochastic, lab.data, levels, x, EDM(), noiseless=True)
        assert (still - lab.drive(ode, lab.data, levels, x, EDM())).abs().max() > 0.1


def test_pcg_asks_for_the_gains(lab):
    levels = EDM().grid(3)
    _, model = lab.drive(PCG(2), lab.data, levels, start(lab, levels), EDM(), whole=True)
    gains = [gain for _, gain in model.calls]
    assert gains == [0.0, 2.0, 2.0, 0.0, 2.0, 2.0, 0.0]
    assert [lv for lv, _ in model.calls] == [levels[i] for i in (0, 1, 1, 1, 2, 2, 2)]
