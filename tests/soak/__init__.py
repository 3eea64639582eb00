"""Tests that run for minutes or hours against the throwaway remote host: ``make soak``. No part of ``make test``.

Each repeats something as often as an environment variable says, ``RDA_SOAK_`` and the name that the test gives it;
without one, as often as is meant to hold (``RDA_SOAK_CYCLES=200 make soak TESTS=tests.soak.test_relay`` is a quick
look). Each prints what it measured, also when it passes.
"""
