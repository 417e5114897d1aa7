"""KernelSpec -> CUDA source.

Owns template lookup and rendering; the only module that knows jinja2. Must not know flags or compilers.
"""

from __future__ import annotations

from pathlib import Path

import jinja2

from prism_gen.errors import RenderError
from prism_gen.families import context, family
from prism_gen.spec import KernelSpec

_PACKAGE = Path(__file__).resolve().parent


def template_root() -> Path:
    """Folder of the templates and headers: inside an installed package, or beside it in a checkout.

    Raises: RenderError if neither exists.
    """
    for root in (_PACKAGE / "templates", _PACKAGE.parent / "templates"):
        if root.is_dir():
            return root
    raise RenderError(
        f"no templates folder in or beside {_PACKAGE}", fix="reinstall prism-gen, or run it from a checkout"
    )


def render(spec: KernelSpec, root: Path) -> str:
    """The .cu source of `spec`, from its family's template below `root`.

    Raises: RenderError where the template is missing or broken, or asks for a constant that the family does not
    give; UnsupportedError where the spec breaks a limit of its family.
    """
    constants = context(spec)
    template = family(spec.family).template
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(root),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
    try:
        return environment.get_template(template).render(constants)
    except jinja2.TemplateNotFound as error:
        raise RenderError(
            f"no template {error.name} in {root}", fix="reinstall prism-gen, or add the template"
        ) from None
    except jinja2.TemplateSyntaxError as error:
        raise RenderError(f"{error.filename}:{error.lineno}: {error.message}") from None
    except jinja2.UndefinedError as error:
        raise RenderError(
            f"{root / template}: {error.message}",
            exists=", ".join(sorted(constants)),
            fix=f"use one of these, or add the constant to the context in prism_gen/families/{spec.family}.py",
        ) from None
