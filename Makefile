# make test      lint, strict types and every test; installs the real peers they talk to where it may
# make install   an environment in .venv with the command .venv/bin/overread
# make soak      an hour of deaths and hostile inputs; make soak KILLS=40 INPUTS=20000 SEED=7 for less of it
# make demo      the whole way on synthetic images, or on your own: make demo DATA=folder
SHELL := /bin/bash
VENV := .venv
# The first Python that is new enough; set PYTHON=... for another one.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

.PHONY: install demo test soak peers lint

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@if [ -z "$(PYTHON)" ]; then \
		echo "Python 3.11 or newer is needed: sudo apt-get install python3 python3-venv" >&2; exit 1; fi
	@if ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
		echo "$(PYTHON) cannot make environments: sudo apt-get install python3-venv" >&2; exit 1; fi
	@echo "Installing into $(VENV), about a minute the first time"
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

demo: install
	@$(VENV)/bin/python -m demo.run $(if $(DATA),--data "$(DATA)")

# Real peers, from Debian: the tests talk to these and skip, with the reason, what is not there.
PEERS := orthanc orthanc-dicomweb dcmtk dicom3tools postgresql strace

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing what the tests need"
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@

peers:
	@missing=""; for p in $(PEERS); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q "ok installed" \
		|| missing="$$missing $$p"; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if ! command -v apt-get >/dev/null; then echo "Not on Debian: tests with$$missing will be skipped"; exit 0; fi; \
	sudo=""; if [ "$$(id -u)" != 0 ]; then \
		if sudo -n true 2>/dev/null; then sudo="sudo"; else \
			echo "To run every test: sudo apt-get install$$missing"; exit 0; fi; fi; \
	echo "Installing the test peers:$$missing"; \
	$$sudo apt-get update -qq && \
	$$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null

# A model server for the tests, in an environment of its own: it pins older versions of what the node uses.
$(VENV)-mlserver/.installed: Makefile
	@echo "Installing MLServer for the tests"
	@rm -rf $(VENV)-mlserver
	@$(PYTHON) -m venv $(VENV)-mlserver
	@if $(VENV)-mlserver/bin/python -m pip install --quiet --disable-pip-version-check --no-compile mlserver==1.7.1; \
		then touch $@; else rm -rf $(VENV)-mlserver; echo "Without MLServer its tests will be skipped"; fi

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

test: peers $(VENV)-mlserver/.installed lint
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

soak: peers $(VENV)/.installed-dev
	$(VENV)/bin/python -W ignore -m tests.soak $(if $(KILLS),--kills $(KILLS)) $(if $(INPUTS),--inputs $(INPUTS)) $(if $(SEED),--seed $(SEED))
