"""Drift is told alike in the metrics, in the API and on the pages."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from node.workflow.models import installed, register, store_of
from storage import drift
from tests.model_factory import segmentation_card, thresholding, write_model
from tests.web import WebNode


def record(web: WebNode, middle: float, count: int) -> None:
    values = np.random.default_rng(int(100 * middle)).normal(middle, 1, count)
    makers = ("SIEMENS", "<b>A&B</b>")
    with web.services.database.write() as connection:
        drift.record(
            connection,
            model="chest",
            version="1.0.0",
            digest="d" * 64,
            observations=[{"median": float(v), "manufacturer": makers[n % 2]} for n, v in enumerate(values)],
            reference=500,
            window=500,
        )


def psi_of(web: WebNode, feature: str) -> float | None:
    label = f'overread_model_psi{{feature="{feature}",model="chest",version="1.0.0"}} '
    line = next((one for one in web.http.get("/metrics").text.splitlines() if one.startswith(label)), None)
    return None if line is None else float(line.removeprefix(label))


def test_a_shifted_population_is_told_in_the_metrics_the_api_and_on_the_page(web: WebNode) -> None:
    assert "No model has read anything" in web.http.get("/models").text
    assert web.http.get("/models/chest").status_code == 404
    record(web, 0.0, 500)
    assert psi_of(web, "median") is None
    record(web, 0.0, 500)
    steady = psi_of(web, "median")
    assert steady is not None
    assert steady < 0.1
    record(web, 1.0, 500)
    shifted = psi_of(web, "median")
    assert shifted is not None
    assert shifted > 0.25
    same = psi_of(web, "manufacturer")
    assert same is not None
    assert same < 0.01

    (told,) = web.http.get("/api/v1/models/chest/stability").json()
    assert (told["level"], told["observations"], told["reference"]) == ("much", 1500, "first inputs")
    assert [one["name"] for one in told["features"]] == ["median", "manufacturer"]
    assert told["features"][0]["psi"] == shifted
    assert web.http.get("/api/v1/stability").json() == [told]

    page = web.http.get("/models/chest")
    assert "changed much" in page.text
    # What a header says is text on the page, and never part of it.
    assert "<b>" not in page.text
    drawings = [ElementTree.fromstring(one) for one in re.findall(r"<svg.*?</svg>", _quoted(page.text), re.DOTALL)]
    assert len(drawings) == 2
    assert len(drawings[0].findall(".//rect")) == 20
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "models/chest" in web.http.get("/models").text


def test_the_page_of_models_tells_what_each_version_is_and_why_it_reads_nothing(
    start_web: Callable[..., WebNode], tmp_path: Path
) -> None:
    place = write_model(tmp_path / "models", segmentation_card(title="<b>Bright</b>"), thresholding()).parent
    web = start_web(settings={"models": place.parent})
    settings = web.services.settings
    with web.services.database.write() as connection:
        register(connection, installed(settings, routed=False), store_of(settings))
    page = web.http.get("/models").text
    assert "<td>live<td><span class=unknown>nothing: no route names it</span>" in page
    assert "not measured on this machine" in page
    assert "overread models tune blobs@1.0.0" in page
    assert "No model has read anything" in page
    # A model that has read nothing has a page too, and what a card says is text on it.
    page = web.http.get("/models/blobs").text
    assert "&lt;b&gt;Bright" in page
    assert "<b>" not in page


def _quoted(html: str) -> str:
    """Bring HTML's short forms to XML."""
    return re.sub(r"(<\w+[^>]*? (?:class|role)=)(\w+)", r"\1'\2'", html)
