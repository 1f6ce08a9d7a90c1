"""`python -m minidsv4.course.stepper FOLDER` writes the stepper's page into a folder."""

import sys

from minidsv4.course.pages import write_from_command_line
from minidsv4.course.stepper import write_site

sys.exit(write_from_command_line("stepper", write_site))
