# Needs Python 3.11 or 3.12 and make; everything else goes into .venv.

MODEL := bundled:smollm2-135m
UV_VERSION := 0.13.9
LOCK_VENV := .cache/lock
CYCLONEDX_VERSION := 7.5.0
SBOM_VENV := .cache/sbom
# Two processes: a test with an engine spends most of its time importing, on one core.
PAIRED := -n 2 --dist loadfile
QUICK := -m "not integration" $(PAIRED)
# What `make compat` tries: the oldest versions that pyproject.toml allows.
RAY := 2.58.0
VLLM := 0.31.0
# More options for `make lock`, say --upgrade or --upgrade-package ray.
LOCK_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test unit shipped chaos mutations compat coverage check bench docs site screens lock sbom clean

help:  ## List the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 14

setup:  ## Create or update .venv
	@bash infra/setup.sh

demo: setup  ## Summarize the demo corpus with a small model, and show some rows
	.venv/bin/tokenmill models fetch $(MODEL)
	.venv/bin/python jobs/demo/build.py out/corpus
	.venv/bin/tokenmill run jobs/summarize.yaml
	.venv/bin/python jobs/demo/show.py out/summaries

test: setup  ## Run the tests (half an hour)
	.venv/bin/tokenmill models fetch $(MODEL)
	.venv/bin/pytest $(QUICK)
	.venv/bin/pytest -m "integration and not chaos and not shipped" $(PAIRED)

shipped: setup  ## Run jobs of jobs/ with their real models, an engine each (minutes)
	.venv/bin/tokenmill models fetch $(MODEL)
	.venv/bin/pytest -m "shipped and not chaos"

unit: setup  ## Run the quick tests
	.venv/bin/pytest $(QUICK)

chaos: setup  ## Kill, mislead and starve runs by the hundred; prove that no row is lost (minutes)
	.venv/bin/pytest -m chaos
	PYTHONPATH=tests .venv/bin/python -m faults.chaos --seeds 5 --rounds 4 --ray-rounds 1 \
	  --report out/chaos.json

mutations: setup  ## Break the code in known ways, and see that the quick tests notice (minutes)
	.venv/bin/python tests/faults/mutations.py

compat: setup  ## Run the demo with the oldest Ray and vLLM, or with RAY=… VLLM=… (minutes)
	bash infra/compat.sh $(RAY) $(VLLM)

coverage: setup  ## Run the quick tests and report lines and branches they miss
	.venv/bin/pytest $(QUICK) --cov --cov-report=term

check: setup  ## Check format, lint, types, layers and declared dependencies
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/deptry pipeline

bench: setup  ## Compare the speed with vLLM alone and others, in turns (two hours, a quiet machine)
	.venv/bin/python -m bench

docs: setup  ## Regenerate docs/job.md from the job's model
	.venv/bin/python docs/job_reference.py

site: setup  ## Build the documents as a site, in out/site
	.venv/bin/mkdocs build --strict

screens: setup  ## Regenerate tests/commands/screens, what a terminal shows for each command
	.venv/bin/pytest -q tests/commands/test_screens.py --write-screens

lock: setup  ## Regenerate requirements/cpu.txt and gpu.txt from pyproject.toml
	test -x $(LOCK_VENV)/bin/uv || .venv/bin/python -m venv $(LOCK_VENV)
	$(LOCK_VENV)/bin/python -m pip install --quiet uv==$(UV_VERSION)
	$(LOCK_VENV)/bin/uv pip compile pyproject.toml --extra cpu --extra dev --extra export \
	  --universal --python-version 3.11 --generate-hashes --no-header --quiet \
	  --overrides requirements/overrides.txt --no-emit-package torch \
	  --output-file requirements/cpu.txt $(LOCK_ARGS)
	@! grep -E '^(cuda|nvidia|torch|triton)' requirements/cpu.txt || \
	  { echo "lock: these come with CUDA; name them in requirements/overrides.txt" >&2; exit 1; }
	printf '%s\n' 'hatchling>=1.27' 'ray[default]' | \
	  $(LOCK_VENV)/bin/uv pip compile pyproject.toml - --extra gpu --extra audio \
	  --python-version 3.12 --python-platform x86_64-manylinux_2_28 --generate-hashes \
	  --no-header --quiet --output-file requirements/gpu.txt $(LOCK_ARGS)

sbom: setup  ## Write sbom.json, a bill of materials in the CycloneDX format
	test -x $(SBOM_VENV)/bin/cyclonedx-py || .venv/bin/python -m venv $(SBOM_VENV)
	$(SBOM_VENV)/bin/python -m pip install --quiet cyclonedx-bom==$(CYCLONEDX_VERSION)
	cat requirements/torch.txt requirements/cpu.txt | \
	  $(SBOM_VENV)/bin/cyclonedx-py requirements --output-reproducible --output-file sbom.json -

clean:  ## Remove .venv, caches and the demo's output
	rm -rf .venv .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache dist out sbom.json
	find infra jobs pipeline tests -name __pycache__ -prune -exec rm -rf {} +
