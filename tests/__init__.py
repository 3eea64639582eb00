"""The tests of rda: unit tests mirror the modules; tests.live needs a real remote host."""
