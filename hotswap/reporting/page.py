"""The content of a report as one HTML file."""

import base64
import json
from collections.abc import Callable

from jinja2 import Environment, PackageLoader, StrictUndefined

from hotswap import colours
from hotswap.reporting.content import Content
from hotswap.reporting.figures import BARS

_OPEN = 4  # targets whose pictures are shown at once; the others open when they are clicked


def render(content: Content) -> bytes:
    """The page, in UTF-8. The template engine escapes all text."""
    plan = json.dumps(content.plan.to_dict(), indent=2)  # as `hotswap convert --plan` reads it
    return filled(
        "report.html",
        c=content,
        bars=BARS,
        open_targets=_OPEN,
        plan_json=plan,
        plan_uri="data:application/json;base64," + base64.b64encode(plan.encode("utf-8", "replace")).decode("ascii"),
        ramp=[f"#{bytes(colour).hex()}" for colour in colours.ramp_palette()[::51]],
    )


def filled(template: str, **values: object) -> bytes:
    """A page from one of the templates, in UTF-8."""
    environment = Environment(
        loader=PackageLoader("hotswap.reporting", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= _FILTERS
    # Names of files can hold bytes that UTF-8 cannot encode.
    return environment.get_template(template).render(**values).encode("utf-8", "replace")


def _number(value: float | None, digits: int = 3) -> str:
    return "not known" if value is None else f"{value:.{digits}g}"


def _milliseconds(value: float) -> str:
    return f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms"


def _memory(value: int) -> str:
    return f"{value / 2**20:.1f} MiB" if value >= 2**20 / 10 else f"{value / 2**10:.0f} KiB"


def _percent(value: float) -> str:
    return f"{value:.1%}" if value < 0.995 else f"{value:.0%}"


def _drift(value: float) -> str:
    return f"{value:.2g}" if value < 5e-4 else _percent(value)


def _weight(value: float) -> str:
    """K with two digits and without the 0 before the point, for a small field."""
    text = f"{value:.2f}"
    return "1" if text == "1.00" else text.replace("0.", ".", 1)


def _shade(value: float) -> int:
    """Brightness of a field, 0 to 10."""
    return round(10 * min(max(value, 0.0), 1.0)) if value == value else 0


_FILTERS: dict[str, Callable[..., object]] = {
    "number": _number,
    "milliseconds": _milliseconds,
    "memory": _memory,
    "percent": _percent,
    "drift": _drift,
    "weight": _weight,
    "shade": _shade,
}
