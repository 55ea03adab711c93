"""Models of one file are loaded here as in the tests of loading."""

from tests.loading.conftest import folder, loaded, write  # noqa: F401
