# make help lists the targets.  Everything is installed into $(VENV) from a lock file with exact versions.
PYTHON ?= python3
VENV ?= .venv
# cpu, cuda12, cuda13 or tpu: which jax is installed.
DEVICE ?= cpu

LOCK := requirements/$(DEVICE).lock
INSTALLED := $(VENV)/.installed-$(DEVICE)
RUN := $(VENV)/bin/python
# Compiled programs are kept, so that a second run starts at once.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.jax_cache

.PHONY: help venv demo test lint types unit parity page newer site notebooks outputs accelerators fuzz lock clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10
	@echo "DEVICE=cpu|cuda12|cuda13|tpu chooses the jax to install, e.g. make demo DEVICE=cuda12"

venv: $(INSTALLED) ## the virtual environment alone

$(INSTALLED): $(LOCK) pyproject.toml
	test -x $(RUN) || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jaxdet needs Python 3.11 or newer; try make PYTHON=python3.11")'
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --requirement $(LOCK)
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@rm -f $(VENV)/.installed-*
	@touch $@

demo: venv ## data, training, evaluation and pictures on this machine, into runs/demo/
	$(RUN) train.py --config configs/demo.py --workdir runs/demo

test: lint types unit ## everything but full-size parity

lint: venv
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: venv
	$(RUN) -m mypy

# These tests compile hundreds of small programs and run each once or twice; optimising them takes longer than it saves,
# and XLA's newer code generator a third longer than the one before it, which newer versions of jax do not have any more.
# Parity tests are optimised, by the newer one.
EARLIER_GENERATOR := --xla_cpu_use_fusion_emitters=false

# Two at a time, whole files, since tests of a file share what they have compiled; each takes up to 5 GB.  The order is
# that of tests/conftest.py, and not pytest-xdist's, which begins with the files of most tests.  A process that a test has
# ended is not replaced: the next one would begin with the same test.
unit: venv
	(XLA_FLAGS="$(EARLIER_GENERATOR)" $(RUN) -c 'import jax; jax.devices()') >/dev/null 2>&1 \
	  && export XLA_FLAGS="$$XLA_FLAGS $(EARLIER_GENERATOR)"; \
	  JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(RUN) -m pytest -m "not parity" --numprocesses 2 --max-worker-restart 0 \
	  --dist loadfile --no-loadscope-reorder

# PARITY_SHARE=3: a model of each family, and a third of the others, chosen by the commit; PARITY_LONG=1: also what is
# left out otherwise (tests/parity/conftest.py).
parity: venv ## full-size models against their golden files
	$(RUN) -m pytest tests/parity tests/exporting -m parity --numprocesses 2 --max-worker-restart 0

page: venv ## the page of a report in a browser without a window
	command -v chromium || { echo "make page needs chromium on the path: apt-get install chromium"; exit 1; }
	$(RUN) -m pytest tests/report/test_page.py

newer: venv ## a few tests under a newer Python and its jax, where there is one
	.ci/newer

# Tools of the extra docs, beside what the lock file names.
DOCS := $(VENV)/.installed-docs

$(DOCS): $(INSTALLED)
	$(RUN) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' \
	  | $(RUN) -m pip install --quiet --disable-pip-version-check --constraint $(LOCK) --requirement /dev/stdin
	@touch $@

# zensical counts what griffe says of docstrings as no warning.
site: $(DOCS) ## the documentation as a site, in build/site/html/; a warning fails
	$(RUN) -m tools.site
	$(RUN) -m zensical build --strict --clean --config-file zensical.toml > build/site/log 2>&1; \
	  status=$$?; cat build/site/log; test $$status = 0 && ! grep -q '^griffe:' build/site/log

notebooks: $(DOCS) ## the notebooks from the first cell to the last, on small settings
	$(RUN) -m pytest tests/test_notebooks.py tests/tools/test_site.py

# The first leaves a run for the others.
outputs: $(DOCS) ## the notebooks at full size, some minutes; stores what they show
	$(RUN) -m jupyter nbconvert --to notebook --execute --inplace \
	  --ExecutePreprocessor.record_timing=False notebooks/predict.ipynb notebooks/own_data.ipynb notebooks/inside.ipynb

# XLA's compilers for GPUs and TPUs alone, beside the jax of $(VENV); they need neither device nor driver.
COMPILERS := build/accelerators/$(notdir $(VENV))
COMPILER_cuda12 := ^(jax-cuda12-|nvidia-(cuda-(cupti|nvcc|nvrtc|runtime)|nvjitlink)-cu12)
COMPILER_tpu := ^libtpu

$(COMPILERS)/%/.installed: requirements/%.lock $(INSTALLED)
	rm -rf $(@D)
	grep -E '$(COMPILER_$*)' $< | $(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --target $(@D) \
	  --requirement /dev/stdin
	@touch $@

# ROWS="--configs sbr_cnn --targets v5e:2x4": other models and devices (python -m benchmarks.models.accelerators --help).
accelerators: $(COMPILERS)/cuda12/.installed $(COMPILERS)/tpu/.installed ## programs of all families compiled for GPUs and TPUs that need not be there
	$(RUN) -m benchmarks.models.accelerators $(ROWS)

fuzz: venv ## many spoilt data sets and checkpoints, about half an hour
	$(RUN) -m tests.fuzz

lock: venv ## new lock files from pyproject.toml (needs the network)
	$(RUN) -m pip install --quiet --disable-pip-version-check uv
	for device in cpu cuda12 cuda13 tpu; do \
	  extra=$$(test $$device = cpu || echo "--extra $$device"); \
	  $(RUN) -m uv pip compile --quiet --upgrade --universal --python-version 3.11 --no-annotate --no-header \
	    --no-emit-find-links --no-emit-index-url --extra test $$extra pyproject.toml -o requirements/$$device.lock || exit 1; \
	  sed -i '1i # Exact versions of everything, test tools included; made by `make lock` from pyproject.toml.' \
	    requirements/$$device.lock; \
	done

clean: ## caches; not the environment, not runs/
	rm -rf .jax_cache .mypy_cache .pytest_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
