"""Settings that all tests share."""

import pytest
import torch
from hypothesis import HealthCheck, settings

from fairlead.models import zoo
from fairlead.models.unet import UNet

settings.register_profile(
    "fairlead",
    max_examples=40,
    deadline=None,  # the machine may be busy; a test never fails for being slow
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("fairlead")


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A digits network that nobody trained, so that no test waits for good samples."""
    torch.manual_seed(0)
    network = UNet(size=8, channels=1, classes=10, patch=1, widths=(16, 16), attention=(1,))
    about = {
        "name": "untrained",
        "network": "unet",
        "schedule": {"name": "EDM", "sigma_min": 0.002, "sigma_max": 80.0},
        "prediction": "edm",
        "sigma_data": 0.5,
        "shape": [1, 8, 8],
        "classes": ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"],
        "null": {"label": 10},
        "states": ["cond", "null"],
        "data": "digits",
    }
    return str(zoo.save(network, about, tmp_path_factory.mktemp("model")))
