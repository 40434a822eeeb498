"""Every certificate of a coordinator, before and after its end: what each command says and does."""

import socket
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from layerweld.cli import main as cli
from layerweld.deploy import certificates
from layerweld.deploy.certificates import make_authority, make_server
from layerweld.deploy.checks import check_coordinator
from layerweld.deploy.coordinator import open_coordinator
from layerweld.deploy.life import life_of
from layerweld.deploy.processes import Supervisor
from layerweld.deploy.rehearsal import require_verified
from layerweld.deploy.validity import tend, warnings_of
from layerweld.errors import DeployError
from tests.test_deploy_certificates import check_certificate
from tests.typed_commands import init_coordinator, lw, runner

SERVER, AUTHORITY = 397, 3650  # days


@pytest.fixture
def days_later(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Move the clock by which certificates are made and judged."""
    real = certificates.now

    def move(days: Any) -> None:
        monkeypatch.setattr(certificates, "now", lambda: real() + timedelta(days=days))

    yield move
    monkeypatch.setattr(certificates, "now", real)


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Supervisor, "run", lambda _: None)


def organisation(
    folder: Path,
    days: int = SERVER,
    authority_days: int = AUTHORITY,
    host: str = "localhost",
    stem: str = "org",
) -> tuple[Any, ...]:
    """The files of an organisation that signs its own certificates."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certificates, "SERVER_DAYS", days)
        patch.setattr(certificates, "AUTHORITY_DAYS", authority_days)
        authority = make_authority("organisation")
        server = make_server(authority, [host, "127.0.0.1"])
    files = {"crt": server.certificate_pem, "key": server.key_pem, "ca": authority.certificate_pem}
    for ending, content in files.items():
        (folder / f"{stem}.{ending}").write_bytes(content)
    return (
        *("--certificate", folder / f"{stem}.crt"),
        *("--key", folder / f"{stem}.key"),
        *("--authority", folder / f"{stem}.ca"),
    )


def up() -> str:
    return lw("coordinator", "up", "--folder", "fed").output


def verifies_now(fed: Path, authority: Path | None = None) -> bool:
    """Whether a site that has this authority trusts the gateway, and SuperExec the SuperLink."""
    folder = fed / "certificates"
    outside = authority or folder / "ca.crt"
    require_verified(folder / "server.crt", folder / "server.key", outside, "localhost")
    inside = folder / "inside-ca.crt"
    require_verified(folder / "inside.crt", folder / "inside.key", inside, "127.0.0.1")
    return True


class TestOwnAuthority:
    @pytest.fixture
    def fed(self, here: Path) -> Path:
        init_coordinator()
        return here / "fed"

    @pytest.mark.parametrize("day", [0, 1, SERVER - 32])
    def test_up_changes_nothing_for_a_year(
        self, fed: Path, days_later: Callable[..., None], day: Any
    ) -> None:
        before = (fed / "certificates/server.crt").read_bytes()
        days_later(day)
        assert "renewed" not in up()
        assert (fed / "certificates/server.crt").read_bytes() == before

    @pytest.mark.parametrize("day", [SERVER - 29, SERVER - 1, SERVER + 1, 2 * SERVER])
    def test_up_renews_both_from_a_month_before_the_end_on(
        self, fed: Path, days_later: Callable[..., None], day: Any
    ) -> None:
        sites_have = (fed / "certificates/ca.crt").read_bytes()
        days_later(day)
        said = up()
        assert "renewed" in said
        assert "server.crt" in said
        assert "inside.crt" in said
        for name in ("server", "inside"):
            life = life_of(fed / f"certificates/{name}.crt")
            assert not life.trouble
            assert (life.ends - certificates.now()).days >= SERVER - 1
        assert (fed / "certificates/ca.crt").read_bytes() == sites_have
        assert "renewed" not in up()

    @pytest.mark.parametrize("day", [AUTHORITY - 300, AUTHORITY - 10])
    def test_an_authority_about_to_end_is_prolonged_and_sites_may_take_their_time(
        self, fed: Path, days_later: Callable[..., None], day: Any, tmp_path: Path
    ) -> None:
        old = tmp_path / "old.crt"
        old.write_bytes((fed / "certificates/ca.crt").read_bytes())
        days_later(day)
        said = " ".join(lw("coordinator", "renew", "--folder", "fed").output.split())
        ends = life_of(old).ends
        assert f"the authority that sites have expires on {ends:%Y-%m-%d}" in said
        assert "give every site the new" in said
        assert life_of(fed / "certificates/ca.crt").ends > ends + timedelta(days=day - 1)
        assert "the authority" not in lw("coordinator", "renew", "--folder", "fed").output

    def test_what_a_prolonged_authority_signs_verifies_with_the_old_certificate_and_the_new(
        self, fed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(certificates, "AUTHORITY_DAYS", 100)
        folder = fed / "certificates"
        authority = make_authority("fed")
        (folder / "ca.key").write_bytes(authority.key_pem)
        (folder / "ca.crt").write_bytes(authority.certificate_pem)
        old = tmp_path / "old.crt"
        old.write_bytes(authority.certificate_pem)
        monkeypatch.setattr(certificates, "AUTHORITY_DAYS", AUTHORITY)
        lw("coordinator", "renew", "--folder", "fed")
        assert verifies_now(fed)
        assert verifies_now(fed, old)

    def test_an_authority_that_has_ended_says_that_no_site_can_connect(
        self, fed: Path, days_later: Callable[..., None]
    ) -> None:
        days_later(AUTHORITY + 1)
        said = " ".join(up().split())
        assert "the authority expired on" in said
        assert "no site can connect before it has" in said
        assert not life_of(fed / "certificates/inside-ca.crt").trouble

    def test_a_coordinator_that_is_up_renews_by_itself_and_starts_what_uses_it_again(
        self, fed: Path, days_later: Callable[..., None]
    ) -> None:
        said: list[str] = []
        assert tend(open_coordinator(fed), said.append) == set()
        days_later(SERVER - 5)
        assert tend(open_coordinator(fed), said.append) == {"gateway", "superlink"}
        assert tend(open_coordinator(fed), said.append) == set()
        assert len(said) == 2

    @pytest.mark.parametrize("name", ["server", "inside", "ca", "inside-ca"])
    def test_a_certificate_that_is_damaged_is_named(self, fed: Path, name: str) -> None:
        (fed / f"certificates/{name}.crt").write_text("-----BEGIN CERTIFICATE-----\nAA\n")
        with pytest.raises(DeployError, match=rf"{name}\.crt is not a PEM certificate"):
            up()

    def test_certificates_that_have_not_begun_are_named_and_made_anew(
        self, fed: Path, days_later: Callable[..., None]
    ) -> None:
        days_later(-2)
        assert "is not valid before" in " ".join(warnings_of(open_coordinator(fed)))
        assert "renewed" in up()
        assert "server.crt" not in " ".join(warnings_of(open_coordinator(fed)))


class TestOrganisation:
    @pytest.fixture
    def fed(self, here: Path) -> Path:
        init_coordinator(*organisation(here))
        return here / "fed"

    def test_renew_renews_the_inner_one_and_says_how_long_the_other_is_good(
        self, fed: Path, days_later: Callable[..., None]
    ) -> None:
        before = (fed / "certificates/server.crt").read_bytes()
        days_later(100)
        said = lw("coordinator", "renew", "--folder", "fed").output
        assert "inside.crt, valid until" in said
        assert "is your organisation's, and valid until" in said
        assert "signs your organisation's" not in said
        assert (fed / "certificates/server.crt").read_bytes() == before

    @pytest.mark.parametrize("day", [SERVER - 29, SERVER - 1])
    def test_a_month_before_every_command_warns_with_what_to_do(
        self, fed: Path, days_later: Callable[..., None], day: Any
    ) -> None:
        days_later(day)
        for command in ("up", "renew"):
            said = " ".join(lw("coordinator", command, "--folder", "fed").output.split())
            assert "get a new one from your organisation's certificate authority" in said
            assert "coordinator renew --certificate FILE --key FILE" in said
        assert not life_of(fed / "certificates/inside.crt").trouble

    def test_after_its_end_up_refuses_and_the_inner_one_is_new(
        self, fed: Path, days_later: Callable[..., None]
    ) -> None:
        days_later(SERVER + 1)
        with pytest.raises(
            DeployError, match=r"server\.crt expired on .* no site trusts it; get a"
        ):
            up()
        assert not life_of(fed / "certificates/inside.crt").trouble

    @pytest.mark.parametrize("command", ["status", "run", "resume"])
    def test_a_month_before_commands_warn_without_a_superlink(
        self, fed: Path, days_later: Callable[..., None], command: str
    ) -> None:
        (fed / "run.toml").write_text('name = "fed"\nbase = "x"\n')
        days_later(SERVER - 3)
        said = runner.invoke(cli.app, ["coordinator", command, "--folder", "fed"])
        assert isinstance(said.exception, DeployError)
        assert "warning: " in said.output
        assert "server.crt expires in 2 days" in " ".join(said.output.split())

    def test_a_new_one_is_taken_once_it_is_seen_to_work(
        self, fed: Path, here: Path, days_later: Callable[..., None]
    ) -> None:
        new = organisation(here, stem="new")
        lw("coordinator", "renew", "--folder", "fed", *new)
        assert (fed / "certificates/server.crt").read_bytes() == (here / "new.crt").read_bytes()
        assert verifies_now(fed)

    @pytest.mark.parametrize(
        ("made", "says"),
        [
            ({"days": -1}, "certificate has expired"),
            ({"host": "elsewhere.example.org"}, "Hostname mismatch"),
        ],
    )
    def test_one_that_sites_would_refuse_is_not_taken(
        self, fed: Path, here: Path, made: dict[str, int] | dict[str, str], says: str
    ) -> None:
        before = (fed / "certificates/server.crt").read_bytes()
        new = organisation(here, stem="new", **made)
        with pytest.raises(DeployError, match=says):
            lw("coordinator", "renew", "--folder", "fed", *new)
        assert (fed / "certificates/server.crt").read_bytes() == before

    def test_nor_is_a_key_of_another_or_a_certificate_of_another_authority(
        self, fed: Path, here: Path
    ) -> None:
        new = organisation(here, stem="new")
        organisation(here, stem="other")
        with pytest.raises(DeployError, match=r"(?i)not a certificate and its .*key"):
            lw("coordinator", "renew", "--folder", "fed", *new[:2], "--key", here / "other.key")
        with pytest.raises(DeployError, match="would refuse it"):
            lw("coordinator", "renew", "--folder", "fed", *new[:4])


def test_a_folder_with_its_own_authority_takes_no_organisations_certificate(here: Path) -> None:
    init_coordinator()
    with pytest.raises(DeployError, match="has an authority of its own"):
        lw("coordinator", "renew", "--folder", "fed", *organisation(here))


def authority_of_days(folder: Path, monkeypatch: pytest.MonkeyPatch, days: int) -> Path:
    monkeypatch.setattr(certificates, "AUTHORITY_DAYS", days)
    authority = make_authority("fed")
    server = make_server(authority, ["localhost"])
    (folder / "ca.crt").write_bytes(authority.certificate_pem)
    (folder / "server.crt").write_bytes(server.certificate_pem)
    (folder / "server.key").write_bytes(server.key_pem)
    return folder / "ca.crt"


def test_a_site_is_told_a_month_before_the_authority_that_it_has_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = authority_of_days(tmp_path, monkeypatch, 20)
    found = {one.name: one for one in check_certificate(tmp_path, authority)}
    assert "ca.crt expires in 19 days" in found["authority"].found
    assert "ask the coordinator for its current ca.crt" in found["authority"].remedy
    assert "TLS" in found


def test_a_site_whose_authority_has_ended_is_told_so_and_not_of_the_servers_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = authority_of_days(tmp_path, monkeypatch, -1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        found = check_coordinator(f"localhost:{listener.getsockname()[1]}", authority)
    assert [one.name for one in found] == ["connection", "authority"]
    assert "expired on" in found[-1].found


def test_a_site_whose_authority_is_good_for_long_is_told_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = authority_of_days(tmp_path, monkeypatch, AUTHORITY)
    assert "authority" not in [one.name for one in check_certificate(tmp_path, authority)]
