"""Sphinx configuration. Method pages are written from the registry before the build reads them."""

import dataclasses
import inspect
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent / "src"))

import generate  # noqa: E402

import fairlead as fl  # noqa: E402

generate.write(HERE / "methods")

project = "fairlead"
author = "the fairlead authors"
copyright = author
version = release = fl.__version__
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"fairlead {release}"
html_static_path = ["_static"]
html_show_sphinx = False

# docstrings set code in single or in double backticks alike
default_role = "literal"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_custom_sections = ["Source"]
napoleon_use_ivar = True
napoleon_use_rtype = False
python_use_unqualified_type_names = True

# Other projects' names are not resolved: that would need the network. Ours must be.
nitpick_ignore_regex = [("py:.*", r"(torch|collections|typing|numpy|os|pathlib)(\..*)?")]
# a name of torch where annotations are not evaluated, and type variables
nitpick_ignore = [
    ("py:class", name)
    for name in (
        "Tensor",
        "fairlead.samplers.base.S",
        "FairleadGuider",
        "fairlead.discrete.sampler.TokenSampler",
    )
]


def _public(app, env, node, contnode):
    """Resolves `fairlead.denoiser.Denoiser`, as annotations have it, to `fairlead.Denoiser`."""
    target = node.get("reftarget", "")
    short = re.sub(r"^.*\.", "", target)
    if node.get("refdomain") != "py" or not short:
        return None
    domain = env.get_domain("py")
    found = [name for name in domain.objects if name.rpartition(".")[2] == short]
    if len(found) != 1:
        return None
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", found[0], node, contnode)


def _parameters(app, what, name, obj, options, signature, returns):
    """Parameters of a dataclass as they are written; ranges have a table of their own."""
    if what != "class" or not dataclasses.is_dataclass(obj) or signature is None:
        return None
    shown = []
    for parameter in inspect.signature(obj).parameters.values():
        default = parameter.default
        given = default is not inspect.Parameter.empty
        plain = given and not repr(default).startswith("<")
        value = repr(default) if plain else "..."
        shown.append(f"{parameter.name}={value}" if given else parameter.name)
    return f"({', '.join(shown)})", returns


def setup(app) -> None:
    app.connect("autodoc-process-signature", _parameters)
    app.connect("missing-reference", _public)
