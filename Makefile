# `make run` starts the app, `make test` passes the tests; both set everything up first. `make space` prepares a push to the hub.
# the first of these that runs
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13; do $$p -c '' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
# modules stay compiled for the many processes that the tests start, whatever the machine's habit is
unexport PYTHONDONTWRITEBYTECODE
PYTEST = nice -n 19 $(BIN)/python -m pytest

.PHONY: run setup test space gguf

run: setup
	$(BIN)/python app.py $(ARGS)

# a stamp is newer than the requirements that were installed; the embedded model is converted once
setup: .venv/requirements.stamp
	@ls data/models/*/model.safetensors >/dev/null 2>&1 || $(BIN)/python -m playground.models.loading

# the folder that is pushed to a Hugging Face Space, checked, installed and started; ARGS=--no-start leaves out the last two
space: setup
	$(BIN)/python -m tools.space $(ARGS)

# a version as a file for llama.cpp: make gguf VERSION=3, and if wished TYPE=q8_0, FILE=PATH, ARGS="--data-dir FOLDER"; what the environment calls so counts for nothing
gguf: VERSION =
gguf: TYPE = f16
gguf: FILE = build/gguf/v$(VERSION).gguf
gguf: setup build/gguf/requirements.stamp
	@case "$(VERSION)" in ''|*[!0-9]*) echo "Say which version: make gguf VERSION=3"; exit 1;; esac
	rm -rf build/gguf/v$(VERSION)
	$(BIN)/python -m training.merge --version $(VERSION) --out build/gguf/v$(VERSION) $(ARGS)
	build/gguf/venv/bin/convert-hf-to-gguf --outtype $(TYPE) --outfile $(FILE) build/gguf/v$(VERSION)
	@rm -rf build/gguf/v$(VERSION); echo "$(FILE) is made"

build/gguf/requirements.stamp: requirements-gguf.txt
	$(PYTHON) -m venv --clear build/gguf/venv
	build/gguf/venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-gguf.txt
	touch $@

# In three processes, since tests of the page wait as often as they compute; at the priority of the training worker, which some tests wait for, or it would get no core.
test: .venv/requirements-dev.stamp setup debian
	$(BIN)/ruff format --check . && $(BIN)/ruff check .
	$(PYTEST) $(or $(strip $(ARGS)),-n 3 --dist loadfile --no-loadscope-reorder)

.venv/requirements.stamp: requirements.txt
	@test -n "$(PYTHON)" || { echo "Nudge needs Python 3.11, 3.12 or 3.13"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/requirements-dev.stamp: .venv/requirements.stamp requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

# the browser tests drive Debian's Chromium (its shell without a window), with a font that has Chinese, and the proxy tests Debian's nginx; installed where they are missing and this user may
.PHONY: debian
debian:
	@{ command -v chromium-headless-shell && command -v /usr/sbin/nginx && fc-list :lang=zh-cn | grep -q .; } >/dev/null 2>&1 || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium-headless-shell fontconfig fonts-wqy-microhei nginx-light >/dev/null; } \
	  || echo "chromium-headless-shell or nginx is missing and could not be installed; their tests take chromium, or say what is missing"
