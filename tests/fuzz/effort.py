"""How hard to try: a little in every test run, as long as wished in `make fuzz`."""

import os

from hypothesis import HealthCheck, Phase, settings


def effort(examples: int) -> settings:
    """Settings of a fuzz test of ``examples`` examples, times FUZZ_TIMES."""
    return settings(
        max_examples=examples * int(os.environ.get("FUZZ_TIMES", "1")),
        # The system under test has a state that lives on; what an example did cannot be timed or taken back.
        deadline=None,
        database=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
        print_blob=True,
    )
