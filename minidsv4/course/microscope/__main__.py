"""`python -m minidsv4.course.microscope FOLDER` writes the microscope's page into a folder."""

import sys

from minidsv4.course.microscope import write_site
from minidsv4.course.pages import write_from_command_line

sys.exit(write_from_command_line("microscope", write_site))
