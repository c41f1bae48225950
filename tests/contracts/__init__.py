"""One suite per protocol, passed by every implementation."""

import pytest

# The suites are no test modules by name; their assertions should explain themselves all the same.
pytest.register_assert_rewrite("tests.contracts.backend_contract", "tests.contracts.engine_contract")
