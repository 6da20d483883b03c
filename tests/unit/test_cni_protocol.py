"""Codes, errors as JSON, and CNI_ARGS."""

import inspect
import json

import pytest

from cni_plugins.netconf import parse_args
from cni_plugins.protocol import NEWEST, VERSIONS, CniError, Code, Command, as_cni_error, at_least, error_json
from netlib import errors
from netlib.errors import (
    AddressTaken,
    ConfigError,
    DeadlineExceeded,
    FeatureMissing,
    KernelError,
    NetlibError,
    NotPermitted,
    ObjectMissing,
    PoolExhausted,
    StoreError,
    TeardownError,
    UnknownOption,
    WrongHost,
)


def test_versions_are_ordered() -> None:
    assert VERSIONS[-1] == NEWEST == "1.1.0"
    assert at_least("1.0.0", "0.4.0")
    assert at_least("0.4.0", "0.4.0")
    assert not at_least("0.3.1", "0.4.0")


@pytest.mark.parametrize(
    ("error", "code", "at_status"),
    [
        (ConfigError("x"), 7, 7),
        (UnknownOption("x"), 7, 7),
        (DeadlineExceeded("x"), 11, 11),
        (PoolExhausted("x"), 103, 50),
        (AddressTaken("x"), 102, 50),
        (KernelError("x", 5), 100, 50),
        (FeatureMissing("x"), 104, 50),
        (ObjectMissing("x"), 101, 50),
        (NotPermitted("x"), 105, 50),
        (TeardownError([ConfigError("x")]), 107, 50),
        (StoreError("x"), 108, 50),
        (WrongHost("x"), 108, 50),
        (CniError(51, "x"), 51, 51),
        (CniError(3, "x"), 3, 3),
    ],
)
def test_the_code_of_an_error(error: NetlibError, code: int, at_status: int) -> None:
    assert (as_cni_error(error).code, as_cni_error(error, Command.ADD).code) == (code, code)
    assert as_cni_error(error, Command.STATUS).code == at_status
    assert as_cni_error(error).msg == "x"


def test_every_error_of_ours_has_a_code() -> None:
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, NetlibError)]
    assert len(kinds) > 20
    for kind in kinds:
        assert as_cni_error(kind.__new__(kind)).code in set(Code)


def test_an_error_is_the_object_of_the_specification() -> None:
    assert json.loads(error_json(CniError(Code.INVALID_CONFIG, "no", "why"), "0.4.0")) == {
        "cniVersion": "0.4.0",
        "code": 7,
        "msg": "no",
        "details": "why",
    }
    assert json.loads(error_json(CniError(120, "no"), "1.1.0")) == {"cniVersion": "1.1.0", "code": 120, "msg": "no"}
    assert str(CniError(7, "no", "why")) == "no; why"
    assert json.loads(error_json(CniError(4, "a\udcffb"), "1.1.0"))["msg"] == "a\\udcffb"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        ("IP=10.0.0.5", {"IP": "10.0.0.5"}),
        ("IP=", {"IP": ""}),
        ("IP=1;IP=2;MAC=3", {"IP": "2", "MAC": "3"}),
        ("K8S_POD_NAME=a;IP=1;IgnoreUnknown=1", {"IP": "1"}),
        ("IgnoreUnknown=TRUE;K8S_POD_NAME=a", {}),
    ],
)
def test_args_that_are_known(text: str, found: dict[str, str]) -> None:
    assert parse_args(text, ("IP", "MAC")) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("IP", 'ARGS: invalid pair "IP"'),
        ("IP=1;", 'ARGS: invalid pair ""'),
        ("IP=1=2", 'ARGS: invalid pair "IP=1=2"'),
        ("A=1;IP=1;B=2", 'ARGS: unknown args ["A=1" "B=2"]'),
        ("A=1;IgnoreUnknown=0", 'ARGS: unknown args ["A=1"]'),
        ("ip=1", 'ARGS: unknown args ["ip=1"]'),
        ("IgnoreUnknown=yes", 'ARGS: error parsing value of pair "IgnoreUnknown=yes"'),
    ],
)
def test_args_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(CniError) as caught:
        parse_args(text, ("IP",))
    assert (caught.value.code, caught.value.msg) == (Code.INVALID_ENVIRONMENT, message)
    assert caught.value.details.startswith("CNI_ARGS: ")
