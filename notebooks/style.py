"""The style of all plots: a color means one thing in every notebook."""

import matplotlib.pyplot as plt

COLORS = {
  'SGD': '#7f7f7f',  # the base optimizer
  'SAM': '#1f77b4',
  'AE-SAM': '#e6820e',
  'ASAM': '#17becf',
  'LookSAM': '#9467bd',
  'SS-SAM': '#2ca02c',
  'm-SAM': '#bcbd22',
  'SAM-ON': '#d62728',
  'Fisher': '#8c564b',  # sparse SAM, by the selection of its mask
  'dynamic': '#e377c2',
  # A skipped step is a step of the base optimizer.
  'skipped': '#7f7f7f',
  'perturbed gradient': '#1f77b4',
  'threshold': 'black',
}
# For values in an order, such as radii or layers.
SEQUENCE = plt.get_cmap('viridis')

plt.rcParams.update(
  {
    # The first colors are those of SGD, SAM and AE-SAM.
    'axes.prop_cycle': plt.cycler(color=list(COLORS.values())[:9]),
    'axes.spines.right': False,
    'axes.spines.top': False,
    'axes.titlesize': 'medium',
    'figure.constrained_layout.use': True,
    'figure.dpi': 110,
    'legend.fontsize': 'small',
    'legend.frameon': False,
    'lines.markersize': 4,
  }
)
