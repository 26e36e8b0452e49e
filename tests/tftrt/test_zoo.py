"""TF-TRT's API on models of the zoo: control flow, tables, strings, TF1, old Keras, odd names."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from refimpl import trt_convert as trt
from refimpl.engines import tensorrt
from tests.converter.small import answers
from tests.models import sample_inputs, saved_model
from tests.tftrt.models import tensorrt_records

NAMES = """cond while_loop lstm odd_names keras2_optimizer_slots tf1_table tf1_ref_variables several_signatures
captured_table decode_and_label half many_dtypes unknown_rank integer_division""".split()


@pytest.mark.parametrize("name", NAMES)
def test_convert_build_save(name, tmp_path):
    model, samples = saved_model(name), sample_inputs(name)
    want = answers(model, samples[0])
    converter = trt.TrtGraphConverterV2(input_saved_model_dir=str(model), use_dynamic_shape=True)
    converter.convert()
    converter.build(input_fn=lambda: map(dict, samples))
    if tensorrt.version():
        assert all(record.file for record in tensorrt_records(converter))
    assert converter._manifest.islands
    converter.save(str(tmp_path / "out"))
    feeds = [tf.constant(samples[0][key]) for key in converter._binder.order]
    for got in (converter._converted_func(*feeds), answers(tmp_path / "out", samples[0])):
        assert set(got) == set(want)
        for key, value in want.items():
            array = np.asarray(got[key])
            if value.dtype.kind in "fc":
                tolerance = 1e-2 if name == "half" else 2e-4  # it computes in float16 itself
                np.testing.assert_allclose(array, value, rtol=tolerance, atol=tolerance / 10, err_msg=key)
            else:
                np.testing.assert_array_equal(array, value, err_msg=key)
