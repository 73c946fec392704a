# The targets explain themselves: `make` alone lists them.
.DEFAULT_GOAL := help
.PHONY: help demo grade test check grading-image bench soak lock docs clean

PY := .venv/bin/python
VMMS := localSandbox
LOCK := pyproject.toml --quiet --universal --generate-hashes --no-header --all-extras

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## start the service, grade a right and a wrong submission, show both feedbacks, stop
	@scripts/setup.sh run
	@$(PY) scripts/demo.py

grade: ## grade the three examples, check their scores; VMMS=localSandbox, localDocker, distDocker, ec2SSH or tashiSSH
	@scripts/setup.sh grade $(VMMS)
	@$(PY) scripts/grade.py $(VMMS)

test: ## run all tests; what this machine lacks is skipped with the reason
	@scripts/setup.sh $(if $(filter true,$(CI)),ci,dev)
	@$(PY) -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

check: ## ruff, mypy --strict, import direction
	@scripts/setup.sh $(if $(filter true,$(CI)),ci,dev)
	@.venv/bin/ruff check src tests scripts bench soak examples deploy
	@.venv/bin/ruff format --check src tests scripts bench soak deploy
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-cache

grading-image: ## build the grading image from Debian packages and load it into Docker
	@scripts/setup.sh run
	@$(PY) deploy/images/grading_image.py

bench: ## measure speed and memory beside their floors, in one run; BENCH="--quick latency-sandbox scale"
	@scripts/setup.sh bench
	@$(PY) bench/main.py $(BENCH)

soak: ## run the service under load while its processes are killed; SOAK="--seconds 300 --seed 1 --vmms localSandbox"
	@scripts/setup.sh dev
	@$(PY) soak/main.py $(SOAK)

docs: ## write docs/settings.md anew from the settings
	@scripts/setup.sh dev
	@.venv/bin/tango config table > docs/settings.md

lock: ## resolve the dependencies anew
	@test -x .venv/bin/uv || .venv/bin/pip install --quiet uv
	@.venv/bin/uv pip compile $(LOCK) --group build -o requirements.lock
	@.venv/bin/uv pip compile $(LOCK) --group build --group dev -c requirements.lock -o requirements-dev.lock
	@.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
		--group bench -o requirements-bench.lock

clean: ## remove what the targets made
	@rm -rf .venv build dist .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
