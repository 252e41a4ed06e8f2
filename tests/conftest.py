"""Settings that all tests share."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "fairlead",
    max_examples=40,
    deadline=None,  # the machine may be busy; a test never fails for being slow
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("fairlead")
