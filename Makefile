# step-audio-triton. `make help` lists the targets.

PYTHON ?= python3
VENV   ?= .venv
# Where PyPI's torch would bring gigabytes of CUDA: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
BIN     = $(VENV)/bin

# Tests start hundreds of interpreters, each of which would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo test test-fast clients reliability bench bench-smoke lint format docs picture lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# One stamp a set of extras: `make test` after `make demo` adds what the tests need, and nothing twice.
$(VENV)/.cpu: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch==2.13.0
	$(BIN)/pip install --quiet --editable '.[cpu,voice]'
	@touch $@

$(VENV)/.test: $(VENV)/.cpu
	$(BIN)/pip install --quiet --editable '.[test]'
	@touch $@

install: $(VENV)/.cpu ## virtual environment with the server for machines without a GPU

demo: $(VENV)/.cpu ## serve the small trained model here and ask it something aloud
	$(BIN)/step-audio demo

test: lint ## lint and all tests, a real tritonserver included
	@# Four on two cores: servers are waited for, and clocks.
	$(BIN)/pytest -n 4

test-fast: $(VENV)/.test ## the quick tests: without servers, browsers, trainings, builds, and what waits on clocks
	@# Three: many wait, for clocks and for each other. What draws its requests is long, and its libraries take a
	@# second to import.
	$(BIN)/pytest -n 3 -p no:schemathesis --ignore=tests/gateway/test_gateway_schema.py --ignore-glob='*_fuzz.py' \
		-m 'not (server or browser or training or build or processes or long)'

clients: $(VENV)/.test ## openai, LangChain, LiteLLM, instructor, AI SDK, LiveKit, Pipecat against the small model; docs/clients.md
	$(BIN)/python tests/clients/run_all.py --page

vllm: $(VENV)/.test ## `serve --llm vllm` on vLLM's build for CPUs (3 GB in ~/.cache/step-audio/peers), beside the reference; a quarter of an hour
	VLLM_PYTHON="$$($(BIN)/python benchmarks/vllm_environment.py)" $(BIN)/pytest -m vllm tests/served/test_vllm_served.py

reliability: $(VENV)/.test ## every promise of docs/reliability.md in its long form, three and a half hours; figures in .work/reliability
	$(BIN)/python tests/reliability/run_all.py

bench: $(VENV)/.cpu ## speed of the small model here, over gRPC and HTTP; tables in .work/bench
	$(BIN)/step-audio bench --output .work/bench

bench-smoke: $(VENV)/.cpu ## perf_analyzer's and AIPerf's commands of docs/benchmarks.md, against the small model
	$(BIN)/python benchmarks/smoke.py

lint: $(VENV)/.test ## style, the layers of docs/structure.md, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/mypy benchmarks/*.py benchmarks/peers/*.py
	for model in model_repository/*/1/model.py backends/*/model.py; do $(BIN)/mypy $$model || exit 1; done

format: $(VENV)/.test ## let ruff rewrite
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.test ## write docs/reference/ anew, from docstrings and the HTTP schema
	$(BIN)/python docs/build_reference.py

picture: $(VENV)/.test ## take docs/playground.png anew (needs Chromium)
	$(BIN)/python docs/picture.py

lock: ## write the images' lock files anew (needs uv)
	docker/lock

clean: ## remove what demo and builds left (the virtual environment stays)
	rm -rf .work build dist *.egg-info
