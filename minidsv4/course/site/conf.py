"""Sphinx's configuration of the site; build.py gives it the source folder."""

project = "minidsv4"
html_title = "minidsv4"
author = "the authors of minidsv4"
extensions = ["myst_nb", "minidsv4.course.site.mathml"]
nb_execution_mode = "off"
nb_number_source_lines = False
nb_merge_streams = True
nb_render_markdown_format = "myst"  # formulas and tables in outputs too
nb_code_prompt_show = "Show what draws this"
nb_code_prompt_hide = "Hide what draws this"
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_dmath_double_inline = True
myst_heading_anchors = 4
suppress_warnings = ["mystnb.unknown_mime_type"]
exclude_patterns = ["solutions/*"]

html_theme = "furo"
html_math_renderer = "mathml"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = [("site.js", {"defer": "defer"})]
html_copy_source = False
html_use_index = False
smartquotes = False  # the words as the notebook has them
html_show_sourcelink = False
html_show_sphinx = False
html_show_copyright = False
html_show_search_summary = False  # it would be fetched, which a browser refuses to pages that lie in a folder
html_theme_options = {"top_of_page_buttons": []}
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"
