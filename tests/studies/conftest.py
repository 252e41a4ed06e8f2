"""A network that nobody trained, for the paths of studies."""

import pytest
import torch

from fairlead.models import zoo
from fairlead.models.unet import UNet


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A digits network that nobody trained: the numbers are bad, the paths are the same."""
    torch.manual_seed(0)
    network = UNet(size=8, channels=1, classes=10, patch=1, widths=(16, 16), attention=(1,))
    about = {
        "name": "untrained",
        "network": "unet",
        "schedule": {"name": "EDM", "sigma_min": 0.002, "sigma_max": 80.0},
        "prediction": "edm",
        "sigma_data": 0.5,
        "shape": [1, 8, 8],
        "classes": list("0123456789"),
        "null": {"label": 10},
        "states": ["cond", "null"],
        "data": "digits",
    }
    return str(zoo.save(network, about, tmp_path_factory.mktemp("model")))
