import matplotlib
import torch
from hypothesis import settings

matplotlib.use("Agg")
settings.register_profile("toy", deadline=None, max_examples=50)
settings.load_profile("toy")
torch.set_num_threads(1)  # toy networks are faster on one thread, above all on a busy machine
