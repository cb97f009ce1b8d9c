"""Small pictures of every page, for the documentation: `make screenshots`."""

import sys
import tempfile
from io import BytesIO
from pathlib import Path

from PIL import Image

from tests.web.stage import RUNNING, Stage, chromium, signed_in, stage

FOLDER = Path(__file__).parents[2] / "docs" / "screenshots"
WIDE = {"width": 1320, "height": 860}
NARROW = {"width": 390, "height": 844}


def pages(shown: Stage) -> dict[str, str]:
    return {
        "now": "/",
        "gallery": "/predictions",
        "table": "/predictions?view=table",
        "picture": f"/predictions/{shown.ids[0]}",
        "sound": f"/predictions/{shown.ids[3]}",
        "text": f"/predictions/{shown.ids[1]}",
        "failures": "/failures",
        "handlers": "/handlers",
        "checks": "/checks",
        "stats": "/stats",
        "sign-in": "/sign-in",
    }


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as data, stage(Path(data)) as shown, chromium() as browser:
        shown.create(*RUNNING)
        context = signed_in(browser, shown)
        state = context.storage_state()
        context.close()
        for scheme in ("light", "dark"):
            for word, size in (("wide", WIDE), ("narrow", NARROW)):
                context = browser.new_context(color_scheme=scheme, viewport=size, storage_state=state)  # type: ignore[arg-type]
                for name, path in pages(shown).items():
                    page = context.new_page()
                    page.goto(f"{shown.up.url}{path}")
                    page.wait_for_timeout(700)
                    picture = Image.open(BytesIO(page.screenshot()))
                    small = picture.resize(
                        (picture.width * 5 // 8, picture.height * 5 // 8), Image.Resampling.LANCZOS
                    )
                    small.save(folder / f"{name}-{scheme}-{word}.webp", quality=60, method=6)
                    page.close()
                context.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
