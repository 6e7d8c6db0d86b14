"""What holds for all tests."""

import os

os.environ["L2PATH_REMEMBER"] = "0"  # what was measured before, in other runs, decides nothing here
