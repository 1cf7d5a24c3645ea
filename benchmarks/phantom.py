"""How long the phantom takes to draw: 1,000 images at 64 px (median of 5), and the full cohort at 256 px (once).

python benchmarks/phantom.py
"""

import statistics
import time

from lib.data.phantom import Phantom


def seconds(phantom: Phantom, images: int | None = None) -> tuple[float, int]:
    """Return the time to draw a cohort or its first images, table included, and how many they were."""
    start = time.perf_counter()
    table = phantom.table.head(images) if images else phantom.table
    phantom.render(table.image_id, table.label)
    return time.perf_counter() - start, len(table)


def main() -> None:
    runs = [seconds(Phantom(patients=300, size=64), images=1000) for _ in range(5)]
    print(f"64 px:  {runs[0][1]} images in {statistics.median(time for time, _ in runs):.1f} s (target 5 s)")
    took, images = seconds(Phantom())
    print(f"256 px: {images} images of {Phantom().patients} patients in {took:.0f} s (target 180 s)")


if __name__ == "__main__":
    main()
