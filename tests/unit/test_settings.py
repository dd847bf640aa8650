"""The configuration: what is wrong is named by file, key and what was expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.errors import ConfigurationError
from node.peers import Address
from node.settings import load_settings

ROOT = Path(__file__).resolve().parents[2]


def _write(folder: Path, text: str) -> Path:
    path = folder / "node.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_shipped_configuration_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    settings = load_settings(Path("conf/node.yaml"))
    assert [route.name for route in settings.route_list] == ["chest-ct", "chest-radiograph"]
    assert settings.demonstration_models is False


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVERREAD__DIMSE__PORT", "11199")
    monkeypatch.setenv("OVERREAD__DEMONSTRATION_MODELS", "true")
    settings = load_settings(_write(tmp_path, "dimse: {ae_title: HERE, port: 104}\nroutes: []\n"))
    assert (settings.dimse.port, settings.dimse.ae_title, settings.demonstration_models) == (11199, "HERE", True)


@pytest.mark.parametrize(
    ("variable", "value", "complaint"),
    [
        ("OVERREAD__COMPLETON__QUIET_SECONDS", "5", r"completon: unknown key"),
        ("OVERREAD__DATADIR", "/tmp", r"datadir: unknown key"),
        ("OVERREAD__DIMSE__PROT", "1", r"dimse.prot: unknown key"),
        ("OVERREAD__DIMSE__PORT", "99999", r"dimse.port: .*65535"),
        ("OVERREAD__DIMSE", "12", r"dimse: expected a mapping"),
        ("OVERREAD__DIMSE__STRANGERS", "echo", r"dimse.strangers: .*tuple"),
        ("OVERREAD__DIMSE__STRANGERS", '["echo"', r"dimse.strangers: .*tuple"),
        ("OVERREAD__HTTP__BIND", "0.0.0.0", r"http.bind: 0.0.0.0 is reachable from outside"),
        ("OVERREAD__PEERS__PACS__PORT", "0", r"peers.pacs.port: .*greater than"),
        ("OVERREAD__DESTINATIONS__PACS__PEER", "pax", r"destinations.pacs.peer: no peer 'pax' .*there is: pacs"),
        ("OVERREAD__DESTINATIONS__OTHER__HOST", "h", r"destinations.other: .*'kind'"),
        ("OVERREAD__HTTP__TOKEN", "", r"http.token: expected a token"),
        ("OVERREAD__HTTP__TOKEN", "pass wörd", r"http.token: expected a token"),
        ("OVERREAD__ROUTES", "[3]", r"routes.0: "),
        ("OVERREAD__ROUTES", "{}", r"routes: expected a list of routes, or the path"),
        ("OVERREAD__", "x", r"unknown key"),
    ],
)
def test_a_mistake_in_the_environment_is_blamed_on_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, complaint: str
) -> None:
    monkeypatch.setenv(variable, value)
    path = _write(
        tmp_path,
        "dimse: {ae_title: HERE}\nroutes: []\n"
        "peers: {pacs: {ae_title: A, host: h, port: 1}}\ndestinations: {pacs: {kind: dimse, peer: pacs}}\n",
    )
    with pytest.raises(ConfigurationError, match=complaint) as refused:
        load_settings(path)
    assert [line.startswith(f"environment variable {variable}: ") for line in str(refused.value).splitlines()] == [True]
    assert "wörd" not in str(refused.value)


def test_a_mistake_in_the_file_is_not_blamed_on_a_variable_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OVERREAD__DIMSE__AE_TITLE", "THERE")
    monkeypatch.setenv("OVERREAD_CONFIG", "elsewhere.yaml")
    with pytest.raises(ConfigurationError, match=r"^[^\n]*node.yaml: dimse.port: [^\n]*$"):
        load_settings(_write(tmp_path, "dimse: {port: 0}\nroutes: []\n"))


def test_the_environment_reaches_names_with_capitals_and_takes_lists_and_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OVERREAD__PEERS__PACS__HOST", "pacs.hospital")
    monkeypatch.setenv("OVERREAD__DIMSE", '{"port": 104, "ae_title": "ONE"}')
    monkeypatch.setenv("OVERREAD__DIMSE__AE_TITLE", "TWO")
    monkeypatch.setenv("OVERREAD__DIMSE__STRANGERS", '["echo", "store"]')
    text = "routes: []\npeers: {Pacs: {ae_title: A, host: h, port: 1}}\n"
    settings = load_settings(_write(tmp_path, text))
    assert (settings.dimse.port, settings.dimse.ae_title) == (104, "TWO")
    assert settings.dimse.strangers == ("echo", "store")
    assert settings.peers["Pacs"].address == Address("A", "pacs.hospital", 1)


def test_the_file_of_routes_may_be_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    routes = tmp_path / "routes.yaml"
    routes.write_text("- {name: a, match: {Modality: CT}, models: [m]}\n")
    monkeypatch.setenv("OVERREAD__ROUTES", str(routes))
    assert [one.name for one in load_settings(_write(tmp_path, "routes: nowhere.yaml\n")).route_list] == ["a"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", r"routes.yaml: expected a list of routes \(\[\] for none\), found nothing$"),
        ("name: a", r"routes.yaml: expected a list of routes .*found dict$"),
        ("- {name: a, match: {Modality: CT}}", r"routes.yaml: routes.0.models: Field required$"),
        ("- {name: a, match: {Modality: CT}, models: [m], deliver: [x]}", r"routes.yaml: routes.a.deliver: no 'x'"),
    ],
)
def test_a_mistake_in_the_file_of_routes_names_that_file(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "routes.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=complaint) as refused:
        load_settings(_write(tmp_path, f"routes: {tmp_path / 'routes.yaml'}\n"))
    assert len(str(refused.value).splitlines()) == 1


def test_a_file_of_no_routes_is_taken(tmp_path: Path) -> None:
    (tmp_path / "routes.yaml").write_text("[]\n")
    assert load_settings(_write(tmp_path, f"routes: {tmp_path / 'routes.yaml'}\n")).route_list == ()


ROUTE = "{name: a, match: {Modality: CT}, models: [m], deliver: [%s], notify: [%s]}"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("dimse: {prot: 1}", r"node.yaml: dimse.prot: unknown key"),
        ("dimse: {port: 99999}", r"node.yaml: dimse.port: .*65535"),
        ("dimse: {ae_title: A_TITLE_THAT_IS_TOO_LONG}", r"dimse.ae_title: .*16"),
        ("completion: {quiet_seconds: 0}", r"completion.quiet_seconds: .*greater than 0"),
        ("destinations: {pacs: {kind: dimse}}", r"destinations.pacs.dimse.peer: Field required"),
        ("destinations: {pacs: {kind: dimse, peer: p}}", r"destinations.pacs.peer: no peer 'p' .*there is: none"),
        ("peers: {p: {host: h, port: 1}}", r"peers.p.ae_title: Field required"),
        ("peers: {p: {ae_title: A, host: h}}", r"peers.p: host and port: give both"),
        ("peers: {p: {ae_title: A, hosts: [somewhere]}}", r"peers.p.hosts.0: .*network"),
        ("peers: {p: {ae_title: A, services: [fax]}}", r"peers.p.services.0: .*'echo', 'store'"),
        ("peers: {p: {ae_title: A}, q: {ae_title: A}}", r"peers.q.ae_title: peer 'p' has the same"),
        (
            "peers: {p: {ae_title: A}}\ndestinations: {d: {kind: dimse, peer: p}}",
            r"destinations.d.peer: peer 'p' has no host and port",
        ),
        ("destinations: {pacs: {kind: fax}}", r"destinations.pacs: .*'dimse', 'stow', 'folder'"),
        ("routes: [" + ROUTE % ("pacs", "") + "]", r"routes.a.deliver: no 'pacs' is configured"),
        ("routes: [" + ROUTE % ("", "emr") + "]", r"routes.a.notify: no 'emr' is configured"),
        ("routes: [{name: a, match: {Modalty: CT}, models: [m]}]", r"match.Modalty: not a DICOM keyword"),
        ("routes: [" + ROUTE % ("", "") + ", " + ROUTE % ("", "") + "]", r"two routes are named 'a'"),
        ("routes: 3", r"routes: expected a list of routes, or the path of a file"),
        ("routes:", r"routes: expected a list of routes, or the path of a file"),
        ("dimse:", r"dimse: expected a mapping of keys"),
        ("destinations: [a]", r"destinations: expected a mapping of names"),
        ("1: x", r"1: Keys should be strings"),
        ("dimse: {port: 1}\ndimse: {port: 2}", r"not valid YAML in line 2: the key 'dimse' stands twice"),
        ("destinations:\n  a: {kind: folder, path: x, path: y}", r"in line 2: the key 'path' stands twice"),
        ("dimse: {bind: ''}", r"dimse.bind: expected a host name or an address"),
        ("http: {bind: a..b}", r"http.bind: expected a host name or an address"),
        ("notifiers: {e: {kind: hl7, host: 'a b', port: 1}}", r"notifiers.e.host: expected a host name or an address"),
        ("completion: {quiet_seconds: .inf}", r"completion.quiet_seconds: .*finite"),
        ("completion: {quiet_seconds: 20000}", r"completion: maximum_seconds: expected more than quiet_seconds"),
        ("peers: {a: {ae_title: A, count: true}}", r"peers.a.count: .*no host and port"),
        ("http: {token: ''}", r"http.token: expected a token"),
        ("destinations: {a: {kind: stow, url: 'http://'}}", r"destinations.a.stow.url: expected http:// .*a host"),
        ("destinations: {a: {kind: stow, url: 'http://h:99999'}}", r"destinations.a.stow.url: .*up to 65535"),
        ("destinations: {a: {kind: stow, url: 'http://[h'}}", r"destinations.a.stow.url: expected .*a host"),
        ("destinations: {a: {kind: stow, url: 'http://h:port'}}", r"destinations.a.stow.url: this is no URL"),
        ("destinations: {a: {kind: stow, url: 'http://h?x=1'}}", r"destinations.a.stow.url: .*without a query"),
        ("- a list", r"expected a mapping"),
        ("a: [", r"not valid YAML"),
        ("dimse: {bind: 0.0.0.0}", r"dimse.bind: 0.0.0.0 is reachable from outside; .*list who may call under peers"),
        ("http: {bind: 0.0.0.0}", r"http.bind: 0.0.0.0 is reachable from outside; .*OVERREAD__HTTP__TOKEN"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    path = _write(tmp_path, text if "routes" in text or text.startswith(("-", "a:")) else text + "\nroutes: []\n")
    with pytest.raises(ConfigurationError, match=complaint):
        load_settings(path)


def test_each_mistake_among_several_keys_has_a_line(tmp_path: Path) -> None:
    text = """
routes:
  - {name: one, match: {Modality: CT}, models: [lung-ct], deliver: [pacs], notify: [emr]}
  - {name: one, match: {Modality: CT}, models: [lung-ct]}
"""
    with pytest.raises(ConfigurationError) as caught:
        load_settings(_write(tmp_path, text))
    told = str(caught.value).splitlines()
    assert [line.partition("node.yaml")[2].partition(": ")[2].partition(" ")[0] for line in told] == [
        "routes.one.deliver:",
        "routes.one.notify:",
        "routes:",
    ]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere.yaml: no such file"):
        load_settings(tmp_path / "nowhere.yaml")
    named = _write(tmp_path, f"routes: {tmp_path / 'routes.yaml'}")
    with pytest.raises(ConfigurationError, match=rf"routes.yaml: no such file; {named}: routes names it"):
        load_settings(named)


def test_listening_outside_is_taken_with_a_list_and_a_token_or_when_asked_for_by_name(tmp_path: Path) -> None:
    guarded = "dimse: {bind: 0.0.0.0}\npeers: {ct: {ae_title: CT1}}\nhttp: {bind: 0.0.0.0, token: secret}\nroutes: []\n"
    assert load_settings(_write(tmp_path, guarded)).http.token is not None
    by_name = "dimse: {bind: 0.0.0.0}\nhttp: {bind: 0.0.0.0}\nallow_open_network: true\nroutes: []\n"
    assert load_settings(_write(tmp_path, by_name)).allow_open_network


TLS = (
    "dimse: {tls: {certificate: node.pem, key: node.key, authorities: ca.pem, profile: modified-bcp195}}\nroutes: []\n"
)


@pytest.mark.parametrize("said", ["true", "{}", '"true"'])
def test_a_peer_called_over_tls_has_what_the_nodes_own_section_has(tmp_path: Path, said: str) -> None:
    peers = f"peers: {{pacs: {{ae_title: PACS, host: h, port: 2762, tls: {said}}}}}\n"
    tls = load_settings(_write(tmp_path, TLS + peers)).peers["pacs"].tls
    assert tls is not None
    assert (tls.authorities, tls.certificate, tls.key) == (Path("ca.pem"), Path("node.pem"), Path("node.key"))
    assert (tls.profile, tls.check_host) == ("modified-bcp195", True)


def test_what_a_peers_own_section_says_stands_and_a_key_never_meets_another_certificate(tmp_path: Path) -> None:
    peers = (
        "peers: {pacs: {ae_title: PACS, host: h, port: 1, tls: {authorities: b.pem, certificate: c.pem, key: c.key}}}\n"
    )
    tls = load_settings(_write(tmp_path, TLS + peers)).peers["pacs"].tls
    assert tls is not None
    assert (tls.authorities, tls.certificate, tls.key) == (Path("b.pem"), Path("c.pem"), Path("c.key"))
    half = "peers: {pacs: {ae_title: PACS, host: h, port: 1, tls: {certificate: c.pem}}}\n"
    with pytest.raises(ConfigurationError, match="certificate and key"):
        load_settings(_write(tmp_path, TLS + half))


def test_a_peer_is_called_plainly_unless_it_is_said(tmp_path: Path) -> None:
    peers = "peers: {a: {ae_title: A, host: h, port: 1}, b: {ae_title: B, host: h, port: 1, tls: false}}\n"
    found = load_settings(_write(tmp_path, TLS + peers)).peers
    assert (found["a"].tls, found["b"].tls) == (None, None)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("dimse: {plain: false}", "plain: false leaves no port"),
        ("dimse: {tls: {certificate: a, key: b}}", "authorities: name the file"),
        ("dimse: {tls: {certificate: a, key: b, authorities: c, profile: ssl3}}", "dimse.tls.profile"),
        ("dimse: {tls: {certificate: a, key: b, authorities: c, bind: 0.0.0.0}}", "0.0.0.0 is reachable from outside"),
        ("dimse: {transfer_syntaxes: [JPEG2000Lossles]}", "expected the UID of a transfer syntax"),
        ("dimse: {private_sop_classes: [abc]}", "dimse.private_sop_classes"),
        ("peers: {a: {ae_title: A, passcode: x}}", "give the username"),
    ],
)
def test_a_mistake_about_access_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        load_settings(_write(tmp_path, text + "\nroutes: []\n"))


def test_tls_alone_beyond_loopback_closes_the_node_to_strangers(tmp_path: Path) -> None:
    from node.dimse.access import strangers

    peers = "peers: {a: {ae_title: A}}\n"
    text = "dimse: {tls: {certificate: a, key: b, authorities: c, bind: 0.0.0.0}}\nroutes: []\n" + peers
    assert not strangers(load_settings(_write(tmp_path, text)).dimse)


def test_secrets_for_tls_and_users_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVERREAD__DIMSE__TLS__KEY_PASSCODE", "k")
    monkeypatch.setenv("OVERREAD__PEERS__A__PASSCODE", "p")
    monkeypatch.setenv("OVERREAD__PEERS__A__LOGIN__PASSCODE", "l")
    settings = load_settings(_write(tmp_path, TLS + "peers: {a: {ae_title: A, username: u, login: {username: v}}}\n"))
    assert settings.dimse.tls is not None
    assert settings.peers["a"].login is not None
    secrets = (settings.dimse.tls.key_passcode, settings.peers["a"].passcode, settings.peers["a"].login.passcode)
    assert [one and one.get_secret_value() for one in secrets] == ["k", "p", "l"]
