# Two commands: `make demo` shows the main job, `make test` runs every test.
HYPERVISOR ?= emulated
PYTEST_ARGUMENTS ?=

.PHONY: demo test check clean

demo:
	@./bootstrap run $(HYPERVISOR)
	@.venv/bin/ldm demo --hypervisor $(HYPERVISOR)

test:
	@./bootstrap test
	@.venv/bin/python -m pytest $(PYTEST_ARGUMENTS)

check:
	@./bootstrap test
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
