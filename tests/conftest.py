"""Property tests draw the same examples on every run, and no slow machine fails one."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "baton",
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],  # it measures the machine, not the test
)
settings.load_profile("baton")
