"""The coverage report, opened in a real browser as by a double click."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread
from typing import Literal
from urllib.parse import urlsplit

import pytest
import requests
from playwright.sync_api import Page, expect, sync_playwright

from vsvi_assets.city import City
from vsvi_assets.database.photographs import rebuild_photographs
from vsvi_assets.photographs.sidecar import Sidecar, read_sidecar, write_sidecar
from vsvi_assets.photographs.states import Absence
from vsvi_assets.running.pages import Pages
from vsvi_assets.sandbox import StreetImage
from vsvi_assets.views.report import CoverageReport, make_report
from vsvi_assets_tests.photographs.parts import show
from vsvi_assets_tests.project import Project

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE_NAME = '</script><img src="http://127.0.0.1:9/x"><script>document.title="taken"</script>'

PIXELS_OF = """
swatch => {
    // Where the map has dots of the swatch's colour.
    const wanted = getComputedStyle(swatch).backgroundColor.match(/\\d+/g).map(Number)
    const canvas = document.querySelector("canvas")
    const { width, height } = canvas
    const { data } = canvas.getContext("2d").getImageData(0, 0, width, height)
    const isWanted = (x, y) => wanted.every((value, i) => data[4 * (y * width + x) + i] === value)
    const found = []
    for (let y = 12; y < height - 12; y++) {
        for (let x = 60; x < width - 60; x++) {
            const isKnown = found.some(([fx, fy]) => Math.hypot(fx - x, fy - y) < 14)
            if (isWanted(x, y) && !isKnown) found.push([x, y + 2])
        }
    }
    return found
}
"""


@dataclass
class Opened:
    """A report in the browser, and all that went over the wire or wrong."""

    page: Page
    requests: list[str]
    errors: list[str]

    def classes(self) -> dict[str, int]:
        """Return the number beside each entry of the legend."""
        texts = self.page.locator(".class").evaluate_all(
            "labels => labels.map(label => label.innerText.split('\\n'))"
        )
        return {name.strip(): int(number.replace(",", "")) for name, number, *_ in texts}

    def shown(self) -> str:
        return self.page.locator("#shown").inner_text()

    def click_a_point(self, label: str) -> None:
        """Click a dot that has the colour of an entry of the legend."""
        swatch = self.page.locator(".class", has_text=label).locator(".swatch")
        x, y = swatch.evaluate(PIXELS_OF)[0]
        self.page.locator("canvas").click(position={"x": x, "y": y})

    def picture(self) -> str:
        return str(self.page.locator("canvas").evaluate("canvas => canvas.toDataURL()"))


@contextmanager
def opened(
    city: City, scheme: Literal["light", "dark"] = "light", address: str = ""
) -> Iterator[Opened]:
    """Open a city's report, as a double click does where no address is given."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    # Chromium refuses to sandbox its processes for root, as which containers run.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        page = browser.new_page(viewport={"width": 1200, "height": 900}, color_scheme=scheme)
        page.set_default_timeout(10_000)
        report = Opened(page, [], [])
        page.on("request", lambda request: report.requests.append(request.url))
        page.on("pageerror", lambda error: report.errors.append(str(error)))
        page.on(
            "console",
            lambda message: report.errors.append(message.text) if message.type == "error" else None,
        )
        page.goto(address or city.coverage_report_path.as_uri())
        yield report
        browser.close()
        origin = "{0.scheme}://{0.netloc}/".format(urlsplit(address or "file://"))
        assert all(url.startswith(origin) for url in report.requests)
        assert report.errors == []


def write_report(project: Project, city: City) -> CoverageReport:
    report = make_report(city, project.postgis)
    city.coverage_report_path.write_text(report.html, encoding="utf-8")
    return report


GONE = Absence(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC))


@pytest.fixture
def town(project: Project) -> City:
    """A city of which one image is missing, one is unavailable and points have none."""
    city = project.write_city(max_distance=25)
    project.materialize_metadata(city)
    project.materialize_images(city)
    folders = sorted(path for path in city.sequences_folder.iterdir() if path.is_dir())
    next(folders[0].glob("*.jpg")).unlink()
    for folder in folders[1:]:
        gone = next(folder.glob("*.jpg"))
        gone.unlink()
        sidecar = read_sidecar(folder)
        write_sidecar(folder, sidecar.updated(Sidecar(absent={int(gone.stem): GONE})))
    rebuild_photographs(project.postgis, city)
    return city


def test_a_click_shows_the_photograph_or_that_there_is_none(project: Project, town: City) -> None:
    report = write_report(project, town)
    assert min(report.on_disk, report.gaps, report.missing, report.unavailable) > 0
    with opened(town) as page:
        counted = page.classes()
        assert counted["photograph on disk"] == report.on_disk
        assert counted["gap: none within 25 m"] == report.gaps
        assert counted["selected, not downloaded yet"] == report.missing
        assert counted["selected, no longer at Mapillary"] == report.unavailable

        point = page.page.locator("#point")
        page.click_a_point("photograph on disk")
        image = point.locator("img")
        # wait_for_function would need eval, which the page's own policy forbids.
        expect(image).to_have_js_property("naturalWidth", 64)
        link = str(point.locator("a", has_text="at Mapillary").get_attribute("href"))
        image_id = int(link.removeprefix("https://www.mapillary.com/app/?pKey="))
        taken = project.sandbox.world.images[image_id]
        path = town.sequences_folder / taken.sequence_id / f"{image_id}.jpg"
        assert image.evaluate("image => image.src") == path.as_uri()
        reported = point.inner_text()
        captured = datetime.fromtimestamp(taken.captured_at / 1000, UTC)
        assert f"{captured:%Y-%m-%d %H:%M} UTC" in reported
        assert f"© {taken.creator_username}, Mapillary, CC BY-SA 4.0" in reported
        assert "90° E" in reported
        assert taken.sequence_id in reported

        page.click_a_point("gap")
        assert "No photograph within 25 m of this point." in point.inner_text()
        assert point.locator("img").count() == 0
        page.click_a_point("not downloaded yet")
        assert "not downloaded yet" in point.inner_text()
        page.click_a_point("no longer at Mapillary")
        assert "no longer" in point.inner_text()


def test_the_map_zooms_and_moves(project: Project, town: City) -> None:
    write_report(project, town)
    with opened(town) as page:
        scale = page.page.locator("#scale")
        at_first, picture = scale.inner_text(), page.picture()

        def changes() -> None:
            nonlocal picture
            before = picture
            while picture == before:
                picture = page.picture()

        page.page.mouse.move(400, 400)
        page.page.mouse.wheel(0, -600)
        changes()
        assert scale.inner_text() != at_first
        page.page.mouse.down()
        page.page.mouse.move(500, 460, steps=4)
        page.page.mouse.up()
        changes()
        page.page.locator("canvas").focus()
        for key in ("ArrowLeft", "-", "+", "n", "p"):
            page.page.keyboard.press(key)
            changes()
        assert "Street" in page.page.locator("#point").inner_text()
        page.page.get_by_label("Show all").click()
        changes()
        assert scale.inner_text() == at_first


def test_keys_serve_as_soon_as_the_report_opens(project: Project, town: City) -> None:
    write_report(project, town)
    with opened(town) as page:
        page.page.keyboard.press("n")
        expect(page.page.locator("#point")).to_contain_text("Street")


def test_photographs_are_what_is_on_disk(project: Project, town: City) -> None:
    write_report(project, town)
    stored = {path.stem for path in town.sequences_folder.glob("*/*.jpg")}
    selected = set(town.selected_image_ids_path.read_text().split())
    assert len(stored & selected) < len(selected)
    with opened(town) as page:
        counted = page.page.locator("header").inner_text()
        assert f" photographs {len(stored & selected)} " in " ".join(counted.split())


def test_filters_count_what_they_show(project: Project, town: City) -> None:
    report = write_report(project, town)
    with opened(town) as page:
        assert page.shown().startswith(f"{report.points} of {report.points} street points shown, ")
        before = page.classes()
        years = {name: count for name, count in before.items() if name.isdigit()}
        assert len(years) > 1
        assert sum(years.values()) == before["flat"] + before["panorama"]
        assert before["flat"] + before["panorama"] == report.points - report.gaps

        page.page.get_by_label("gap").uncheck()
        assert page.shown().startswith(f"{report.points - report.gaps} of ")
        page.page.get_by_label("panorama").uncheck()
        assert page.shown().startswith(f"{before['flat']} of ")
        after = page.classes()
        assert after["panorama"] == before["panorama"]
        assert sum(after[year] for year in years) == before["flat"]
        page.page.get_by_label("Capture year").check()
        page.click_a_point(next(year for year in years if after[year]))
        assert "flat" in page.page.locator("#point").inner_text()


def test_the_link_on_the_assets_page_opens_it_with_its_photographs(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    city = project.write_city(seqdir=str(project.folder / "else where" / "photographs"))
    project.materialize_metadata(city)
    project.materialize_images(city)
    with pages(project) as server:
        monkeypatch.setenv("VSVI_PAGES_URL", server.url)
        result = project.materialize(city, "coverage_report")
        [event] = result.get_asset_materialization_events()
        link = str(event.materialization.metadata["link"].value)
        assert link == f"{server.url}{city.coverage_report_path}"
        with opened(city, address=link) as page:
            page.click_a_point("photograph on disk")
            expect(page.page.locator("#point img")).to_have_js_property("naturalWidth", 64)


def test_nothing_but_reports_and_photographs_is_served(project: Project, town: City) -> None:
    write_report(project, town)
    stranger = project.folder / "holiday.jpg"
    stranger.write_bytes(b"private")
    photograph = next(town.sequences_folder.glob("*/*.jpg"))
    with pages(project) as server:

        def status(path: Path | str) -> int:
            return requests.get(f"{server.url}{path}", timeout=10).status_code

        assert status(town.coverage_report_path) == status(photograph) == 200
        for path in (stranger, town.street_points_path, town.sequences_folder, town.folder, ""):
            assert status(path) == 404
        assert status(f"{town.sequences_folder}/%2e%2e/street_points.geojson") == 404


@contextmanager
def pages(project: Project) -> Iterator[Pages]:
    """Serve the project's reports."""
    with Pages(project.settings.data_dir) as server:
        serving = Thread(target=server.serve_forever)
        serving.start()
        try:
            yield server
        finally:
            server.shutdown()
            serving.join()


def test_hostile_names_stay_text(project: Project) -> None:
    city = project.write_city()
    world = project.sandbox.world
    for street in list(world.streets.values()):
        world.streets[street.id] = replace(street, tags={**street.tags, "name": HOSTILE_NAME})
    world.add_images(
        [replace(image, creator_username=HOSTILE_NAME) for image in world.images.values()]
    )
    project.materialize_metadata(city)
    project.materialize_images(city)
    write_report(project, city)
    with opened(city) as page:
        page.click_a_point("photograph on disk")
        reported = page.page.locator("#point").inner_text()
        assert reported.count(HOSTILE_NAME) == 3
        assert page.page.title() == "town: street-view coverage"
        assert page.page.locator("img").count() == 1


def test_it_follows_the_theme(project: Project, town: City) -> None:
    write_report(project, town)
    for scheme, colour in {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 25, 28)"}.items():
        with opened(town, scheme) as page:  # type: ignore[arg-type]
            body = page.page.locator("body")
            assert body.evaluate("body => getComputedStyle(body).backgroundColor") == colour


def test_all_images_are_shown_at_their_nearest_points(project: Project) -> None:
    nearest = project.write_city("nearest", max_distance=25)
    project.materialize_metadata(nearest)
    every = project.write_city("every", max_distance=25, selection="all")
    project.materialize_metadata(every)
    of_nearest = make_report(nearest, project.postgis)
    of_every = make_report(every, project.postgis)
    assert of_nearest.missing == of_every.missing > 0
    assert (of_nearest.gaps, of_nearest.images) == (of_every.gaps, of_every.images)


def test_the_asset_writes_the_report_beside_the_photographs(project: Project) -> None:
    city = project.write_city(seqdir="elsewhere/photographs")
    project.materialize_metadata(city)
    project.materialize_images(city)
    result = project.materialize(city, "coverage_report")
    [event] = result.get_asset_materialization_events()
    metadata = event.materialization.metadata
    assert Path(str(metadata["path"].value)) == city.coverage_report_path
    html = city.coverage_report_path.read_text()
    assert '"sequencesFolder":"../elsewhere/photographs"' in html
    assert metadata["street points"].value == sum(
        int(str(metadata[name].value))
        for name in ("with a photograph", "gaps", "not downloaded yet", "no longer at Mapillary")
    )


def test_points_are_coloured_by_what_was_measured(project: Project) -> None:
    def kind_of(image: StreetImage) -> str:
        return "dark" if image.lon < 5.2065 else "overexposed" if image.id % 4 == 0 else "good"

    show(project.sandbox.world, kind_of)
    city = project.write_city(max_distance=30, quality={"min_brightness": 0.1, "tries": 20})
    assert project.run_city(city).success
    with opened(city) as report:
        classes = report.classes()
        with_photograph = classes["photograph on disk"]
        assert classes["gap: none that is good enough"] > 0
        assert classes["day"] == with_photograph
        assert classes["below 1 %"] + classes["50 % and more"] == with_photograph
        assert 0 < classes["50 % and more"] < with_photograph
        before = report.picture()
        report.page.get_by_role("radio", name="Over-exposed part").check()
        assert report.picture() != before
        report.page.get_by_role("radio", name="Coverage").check()
        report.click_a_point("none that is good enough")
        expect(report.page.locator("#point")).to_contain_text("near this point is good enough")
