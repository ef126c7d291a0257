"""A model repository, assembled once."""

from pathlib import Path

import pytest

from repository_fixture import LLM, build, parse


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """In a folder whose name needs escaping."""
    return build(tmp_path_factory.mktemp("work") / 'a "quoted" \\ folder')


@pytest.fixture(scope="module")
def configs(repository):
    return parse(repository)


@pytest.fixture(scope="module")
def llm(configs):
    return configs[LLM]
