"""The template environment of the page and the data card: everything that is printed is escaped.

Owns loading templates from the package and the filters they may use; refuses undefined names.
"""

from jinja2 import Environment, PackageLoader, StrictUndefined

from synthgen.report.wording import (
    count,
    decimal,
    gain_text,
    interval,
    markdown_text,
    percent,
    points,
    visible_name,
)


def template_environment() -> Environment:
    """A fresh environment; autoescape is on for every template, whatever its name."""
    environment = Environment(
        loader=PackageLoader("synthgen.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        count=count,
        decimal=decimal,
        gain_text=gain_text,
        gain_interval=interval,
        percent=percent,
        points=points,
        visible=visible_name,
    )
    return environment


def markdown_environment() -> Environment:
    """The same for Markdown: the `md` filter is the escape, since HTML's would miss Markdown's own marks."""
    environment = template_environment()
    environment.autoescape = False  # every value from outside goes through `md`, checked by a test with canaries
    environment.filters["md"] = markdown_text
    return environment
