"""The course as static pages that need no kernel and no network.

    python -m minidsv4.course.site            build the site, check its links, look at it where a browser is installed
    python -m minidsv4.course.site --no-look  without the browser

Its text and pictures are the committed notebooks' (pages.py). What moves in the lab moves here too: pictures behind
sliders are drawn ahead (redraw.py), questions hide what follows until they are answered (static/site.js).
"""
