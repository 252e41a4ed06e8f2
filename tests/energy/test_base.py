"""Energies as values: names, sums, labels, and the functions they are made of."""

import copy
import pickle

import pytest
import torch
from torch.testing import assert_close

import fairlead as fl
from fairlead.energy.base import Carried, find, of


def ring(x0):
    return x0.norm(dim=1)


def test_a_guide_carries_its_energy_and_equals_its_text():
    guide = fl.ClassifierGuidance(fl.energy.Function(ring), 2.0)
    assert str(guide) == "classifier_guidance('ring', scale=2.0)"
    assert fl.guide(str(guide)) == guide
    assert hash(fl.guide(str(guide))) == hash(guide)
    for twin in (copy.deepcopy(guide), pickle.loads(pickle.dumps(guide))):
        assert twin == guide
        assert find("x", twin.energies[0], {}).function is ring or twin is not guide


def test_energy_given_to_sample_comes_before_the_carried_one():
    name = of("dps", fl.energy.Function(ring))
    other = fl.energy.Symmetry()
    assert isinstance(name, Carried)
    assert find("dps", name, {"ring": other}) is other


def test_what_is_no_energy_is_refused():
    with pytest.raises(TypeError, match=r"classifier_guidance: energy must be an energy .* got 3"):
        fl.ClassifierGuidance(3)
    with pytest.raises(ValueError, match=r"asks for the energy 'rign'.*did you mean 'ring'"):
        find("dps", "rign", {"ring": ring})


def test_sums_and_multiples():
    a, b = fl.energy.Function(ring), fl.energy.Function(lambda x0: x0[:, 0], name="first")
    z = torch.tensor([[3.0, 4.0]])
    assert_close((a + 0.5 * b)(z), torch.tensor([6.5]))
    assert (a + b).name == "ring_first"
    assert a.named("other").name == "other"
    assert a.name == "ring"
    noisy = fl.energy.Function(lambda x, level: x[:, 0], name="noisy", noisy=True)
    with pytest.raises(ValueError, match="ring and noisy cannot be added"):
        a + noisy


def test_classifier_by_hand():
    # logits (0, log 3): probabilities 1/4 and 3/4
    net = lambda z: torch.stack([0 * z[:, 0], z[:, 0]], 1)  # noqa: E731
    z = torch.tensor([[3.0]]).log()
    judge = fl.energy.Classifier(net, label=1)
    assert_close(judge(z).exp(), torch.tensor([4 / 3]))
    assert_close(judge.towards(0)(z).exp(), torch.tensor([4.0]))
    # tau1 f - log sum exp(tau2 f) = 2 log 3 - log 2 where tau2 = 0
    other = fl.energy.Classifier(net, 1, joint=2.0, marginal=0.0)
    assert_close((-other(z)).exp(), torch.tensor([4.5]))


def test_softplus_tends_to_relu_and_leaves_the_given_network():
    net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
    z = torch.randn(4, 2)
    sharp = fl.energy.Classifier(net, 1, softplus=1e4)
    assert_close(sharp(z), fl.energy.Classifier(net, 1)(z), atol=1e-3, rtol=1e-3)
    assert isinstance(net[1], torch.nn.ReLU)


def test_labels_are_checked():
    net = lambda z: torch.zeros(len(z), 3)  # noqa: E731
    with pytest.raises(ValueError, match="Classifier: label must be a whole number"):
        fl.energy.Classifier(net, 0.5)
    with pytest.raises(ValueError, match="label must be at least 0, got -1"):
        fl.energy.Classifier(net, -1)
    with pytest.raises(ValueError, match=r"classifier: label must be in \[0, 2\], got 3"):
        fl.energy.Classifier(net, 3)(torch.zeros(1, 1))
    with pytest.raises(ValueError, match="2 labels were given for 3 samples"):
        fl.energy.Classifier(net, [0, 1])(torch.zeros(3, 1))
    with pytest.raises(ValueError, match="in training mode"):
        fl.energy.Classifier(torch.nn.Linear(1, 3), 0)(torch.zeros(1, 1))
    with pytest.raises(ValueError, match="softplus must be positive"):
        fl.energy.Classifier(torch.nn.Linear(1, 3), 0, softplus=0.0)


def test_similarity_is_a_cosine():
    e = fl.energy.Similarity(lambda z: z, torch.tensor([0.0, 5.0]), scale=3.0)
    assert_close(e(torch.tensor([[0.0, 0.1], [4.0, 0.0]])), torch.tensor([-3.0, 0.0]))
    with pytest.raises(ValueError, match="target must not have length zero"):
        fl.energy.Similarity(lambda z: z, torch.zeros(2))


def test_a_decoded_energy_is_that_of_what_is_decoded():
    z = torch.randn(3, 2, dtype=torch.float64)
    judge = fl.energy.Classifier(lambda x: torch.cat([x, x**2], 1), 1, marginal=0.5)
    made = fl.energy.decoded(judge, lambda v: 2 * v)
    torch.testing.assert_close(made(z), judge(2 * z))
    torch.testing.assert_close(made.towards(0)(z), judge.towards(0)(2 * z))
    torch.testing.assert_close(made.log_probs(z), judge.log_probs(2 * z))
    assert made.name == "classifier"
    plain = fl.energy.decoded(lambda x: x.sum(1), lambda v: v**2)
    torch.testing.assert_close(plain(z), (z**2).sum(1))
    with pytest.raises(ValueError, match="judges noisy samples"):
        fl.energy.decoded(fl.energy.Function(lambda x, t: x.sum(1), "a", noisy=True), torch.exp)
    with pytest.raises(ValueError, match="must be an energy or a function, got 'light'"):
        fl.energy.decoded("light", torch.exp)
