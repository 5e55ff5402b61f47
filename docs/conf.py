"""How the site is made: `make docs`.  Nothing in it comes from the network when it is read."""

import shmarray

project = "shmarray"
author = "The shmarray developers"
release = version = shmarray.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser"]
exclude_patterns = ["pictures"]

# Docstrings are numpydoc: `name` in them is a link where it is one of ours.
default_role = "py:obj"
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
autodoc_typehints = "none"  # the docstrings say it in words
autodoc_member_order = "bysource"

myst_heading_anchors = 3

html_title = "shmarray"
html_static_path = ["_static"]  # custom.css, which the theme asks for
html_theme = "alabaster"
html_theme_options = {
    "description": "Share numpy arrays between processes without copying them",
    "page_width": "1180px",
    "sidebar_width": "230px",
    "body_max_width": "none",
    "font_family": "system-ui, sans-serif",
    "show_powered_by": False,
    "fixed_sidebar": True,
}
html_sidebars = {"**": ["about.html", "searchfield.html", "navigation.html"]}
html_show_copyright = False  # the licence says it
html_copy_source = False
html_show_sourcelink = False
