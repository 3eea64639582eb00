# What there is to run. Everything happens in .venv, which the first target that needs it makes.

PYTHON ?=
REMOTE ?=
ARGS ?=
PYTHONS ?= python3.11 python3.12 python3.13 python3.14
export PYTHON

VENV := .venv/bin
INSTALLED := .venv/.installed

.PHONY: help run demo host browser test unit live soak check format bench dist deb man pythons clean
help:
	@echo 'make run     start rda against REMOTE=user@host, or against a throwaway remote host (root on Linux);'
	@echo '             ARGS=... are further options of rda, such as --listen tcp:2375:interface=127.0.0.1'
	@echo 'make demo    the same, and the whole story by itself: ports and files of a container over there, used here'
	@echo 'make test    unit tests, then tests against a real sshd and dockerd on the throwaway remote host'
	@echo 'make unit    unit tests only: no network, no root, seconds'
	@echo 'make live    tests against the throwaway remote host only; TESTS=tests.live.test_ports narrows them'
	@echo 'make soak    the same for hours: nothing may grow; TESTS=tests.soak.test_relay and RDA_SOAK_... narrow them'
	@echo 'make browser what a real browser sees, and what its pages cannot do; installs chromium (apt, 200 MB) where it is missing'
	@echo 'make host    only bring the throwaway remote host up, and print how to use it'
	@echo 'make check   ruff and mypy'
	@echo 'make format  let ruff lay out the code'
	@echo 'make bench   measure'
	@echo 'make dist    the source distribution and the wheel, in dist/'
	@echo 'make deb     a Debian package for this machine (rda with all that it needs, in /opt/rda), in dist/'
	@echo 'make man     the manual page, build/rda.1'
	@echo 'make pythons unit tests on every Python here that rda supports; PYTHONS="/path/to/python ..." names them'
	@echo 'make clean   end and remove the throwaway remote host, .venv and what tools left'

$(INSTALLED): setup.py pyproject.toml .ci/venv
	@.ci/venv
	@touch $@

run: $(INSTALLED)
	@$(VENV)/python -m tests.live.run $(REMOTE) $(ARGS)

demo: $(INSTALLED)
	@$(VENV)/python -m tests.live.demo $(REMOTE)

host: $(INSTALLED)
	@$(VENV)/python -m tests.live.host up

browser: $(INSTALLED)
	@command -v chromium >/dev/null || { apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium; } >/dev/null
	@$(VENV)/python -m tests.report tests.live.test_page tests.live.test_web_pages

test: $(INSTALLED)
	@$(VENV)/python -m tests.report unit live

unit: $(INSTALLED)
	@$(VENV)/python -m tests.report unit

live: $(INSTALLED)
	@$(VENV)/python -m tests.report $(or $(TESTS),live)

soak: $(INSTALLED)
	@RDA_RANDOM=1 $(VENV)/python -m tests.report $(or $(TESTS),soak)

check: $(INSTALLED)
	$(VENV)/ruff check rda tests bench twisted setup.py
	$(VENV)/ruff format --check rda tests bench twisted setup.py
	$(VENV)/mypy

format: $(INSTALLED)
	$(VENV)/ruff check --fix rda tests bench twisted setup.py
	$(VENV)/ruff format rda tests bench twisted setup.py

bench: $(INSTALLED)
	@$(VENV)/python -m bench

dist: $(INSTALLED)
	@$(VENV)/python -m build --no-isolation

deb: $(INSTALLED)
	@etc/debian/build $(VENV)/pip dist

man: $(INSTALLED)
	@mkdir -p build
	@$(VENV)/rst2man --strict docs/rda.1.rst build/rda.1
	@echo 'build/rda.1; read it with: man -l build/rda.1'

# The unit tests on every Python here that rda supports.
pythons:
	@for python in $(PYTHONS); do \
	    version=$$($$python -c 'import platform; print(platform.python_version())' 2>/dev/null) || \
	        { echo "$$python: not here"; continue; }; \
	    place=build/python$$version; \
	    $$python -m venv --clear $$place && \
	    $$place/bin/python -m pip install --quiet --disable-pip-version-check '.[test]' && \
	    $$place/bin/python -m tests.report unit || exit 1; done

# The host's own file says where it lives; it needs nothing that is not in Python itself.
clean:
	@for python in $(VENV)/python python3; do \
	    if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        $$python -m tests.live.host clean || [ $$? = 77 ]; break; fi; done
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .hypothesis _trial_temp* twisted/plugins/dropin.cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
