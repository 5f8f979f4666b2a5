"""What the saved ranks show: intervals, tests, ties. numpy and scipy, no torch."""
