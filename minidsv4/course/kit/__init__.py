"""The instructor's kit: students' copies of the course, and a table of points for what comes back.

python -m minidsv4.course release FOLDER   copies without solutions
python -m minidsv4.course grade FOLDER     points for each exercise, from a folder of returned notebooks
python -m minidsv4.course slides 01        a notebook as slides
"""
