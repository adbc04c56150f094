"""How hard to try: the same little in every test run, and as long as wished, differently each time, in `make fuzz`."""

import os

from hypothesis import HealthCheck, Phase, settings


def effort(examples: int) -> settings:
    """Settings of a fuzz test of ``examples`` examples, times FUZZ_TIMES."""
    return settings(
        max_examples=examples * int(os.environ.get("FUZZ_TIMES", "1")),
        # A test run that fails must fail again.
        derandomize="FUZZ_TIMES" not in os.environ,
        # The system under test has a state that lives on; what an example did cannot be timed or taken back.
        deadline=None,
        database=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
        print_blob=True,
    )
