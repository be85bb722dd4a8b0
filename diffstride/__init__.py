"""DiffStride for Keras 3: downsampling whose strides are learned.

Importing this package imports keras and numpy only.
"""

from diffstride.cost import format_cost as format_cost
from diffstride.cost import model_cost as model_cost
from diffstride.pooling import DiffStride as DiffStride
from diffstride.pooling import DiffStride1D as DiffStride1D
from diffstride.pooling import DiffStride3D as DiffStride3D
from diffstride.pooling import FixedSpectralPooling as FixedSpectralPooling
from diffstride.pooling import FixedSpectralPooling1D as FixedSpectralPooling1D
from diffstride.pooling import FixedSpectralPooling3D as FixedSpectralPooling3D
from diffstride.pooling import SpatialPooling as SpatialPooling
from diffstride.pooling import StrideConstraint as StrideConstraint
from diffstride.regularizers import add_stride_cost as add_stride_cost
from diffstride.regularizers import stride_cost as stride_cost
from diffstride.static import freeze as freeze
from diffstride.static import static_sizes as static_sizes
