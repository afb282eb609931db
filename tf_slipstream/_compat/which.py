"""Which Keras is in use."""

import os

IS_KERAS_3 = os.environ.get("TF_USE_LEGACY_KERAS") not in ("1", "true", "True")

if IS_KERAS_3:
    from tf_slipstream._compat import keras3 as chosen
else:
    from tf_slipstream._compat import tf_keras as chosen

keras = chosen.keras
