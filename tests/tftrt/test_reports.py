"""TF-TRT's reports, to the character."""

from __future__ import annotations

from dataclasses import replace

from refimpl.bundle import LeftOp
from refimpl.report.tftrt import DotNode, EngineRow, dot, non_conversion_csv, non_conversion_report, print_summary

ROW = EngineRow(
    name="TRTEngineOp_000_000",
    device="device:GPU:0",
    ops={"MatMul": 1, "Const": 3, "AddV2": 1},
    in_dtypes=["float32"],
    out_dtypes=["float32", "int32"],
    in_shapes=[[-1, 28, 28, 1]],
    out_shapes=[[-1, 10], [-1]],
)
LEFT = [
    LeftOp(name="a", type="Erfc", reason="no lowering"),
    LeftOp(name="b", type="Cast", reason="int64"),
    LeftOp(name="c", type="Cast", reason="asked | for"),
    LeftOp(name="d", type="Cast", reason="int64"),
]


def summary(rows, others, **options):
    lines = []
    options = {"line_length": 160, "detailed": True, **options}
    print_summary(rows, others, print_fn=lambda *text: lines.append(text), **options)
    return lines


def test_summary_of_one_engine():
    lines = summary([ROW], 3)
    heading, rule, row = (line[0] for line in lines[:3])
    columns = {0: "TRTEngineOP Name", 33: "Device", 47: "# Nodes", 55: "# Inputs", 69: "# Outputs", 83: "Input DTypes"}
    columns |= {102: "Output Dtypes", 121: "Input Shapes", 140: "Output Shapes"}
    for start, text in columns.items():
        assert heading[start : start + len(text)] == text
    assert rule == "=" * 160
    assert row[:19] == "TRTEngineOp_000_000"
    assert row[33:45] == "device:GPU:0"
    assert row[47] == "5"
    assert (row[55], row[69]) == ("1", "2")
    assert row[102:120] == "['float32', 'i ..."[:18]
    assert row[121:138] == "[[-1, 28, 28, 1]]"
    assert lines[3] == (), "called without text"
    assert lines[4:7] == [("\t- AddV2: 1x",), ("\t- Const: 3x",), ("\t- MatMul: 1x",)]
    assert lines[7:] == [
        ("\n" + "=" * 160,),
        ("[*] Total number of TensorRT engines: 1",),
        ("[*] % of OPs Converted: 62.50% [5/8]\n",),
    ]


def test_summary_of_several_engines_is_sorted_and_parted():
    second = replace(ROW, name="A")
    lines = [line[0] for line in summary([ROW, second], 0, detailed=False)]
    assert lines[2] == lines[4] == "\n" + "-" * 40 + "\n"
    assert lines[3].startswith("A ")
    assert lines[5].startswith("TRTEngineOp_000_000")
    assert lines[-1] == "[*] % of OPs Converted: 100.00% [10/10]\n"


def test_summary_of_nothing():
    lines = [line[0] for line in summary([], 0)]
    assert lines[-2:] == ["[*] Total number of TensorRT engines: 0", "[*] % of OPs Converted: 0.00% [0/0]\n"]


def test_wider_lines():
    assert len(summary([ROW], 0, line_length=200)[1][0]) == 200


def test_report():
    assert non_conversion_report(LEFT, detailed=False) == (
        "\n\n" + "#" * 80 + "\nTensorRT unsupported/non-converted OP Report:"
        "\n\t- Cast -> 3x\n\t- Erfc -> 1x\n" + "-" * 80 + "\n\t- Total nonconverted OPs: 4"
        "\n\t- Total nonconverted OP Types: 2\nFor more information see "
        "https://docs.nvidia.com/deeplearning/frameworks/tf-trt-user-guide/index.html#supported-ops.\n"
        + "#" * 80
        + "\n"
    )


def test_detailed_report():
    text = non_conversion_report(LEFT, detailed=True)
    assert (
        "\n\t- Cast -> 3x\n\t\t- [Count: 2x] int64\n\t\t- [Count: 1x] asked | for\n"
        "\n\t- Erfc -> 1x\n\t\t- [Count: 1x] no lowering\n\n" + "-" * 80
    ) in text


def test_csv():
    assert non_conversion_csv(LEFT) == ("OP Name|Reason|Count\nCast|asked / for|1\nCast|int64|2\nErfc|no lowering|1\n")


def test_dot():
    text = dot(
        [
            DotNode("x", "Placeholder", "", "float32", []),
            DotNode("TRTEngineOp_000_000", "PyFunc", "/job:a/device:GPU:0", "float16", ["x"], 5),
        ]
    )
    assert text.startswith("digraph tftrt_converted_graph {\n")
    assert '"x" [label=<<b>Placeholder</b>  <br/><i>device:Unspecified</i>> fillcolor=1];' in text
    assert (
        '"TRTEngineOp_000_000" [label=<<b>TRTEngineOp_000_000 [5]</b>  <br/><i>device:GPU:0</i>> fillcolor=2];' in text
    )
    assert '"x" -> "TRTEngineOp_000_000";' in text
    assert "float16 [fillcolor=2 label=<<b>float16</b>>];" in text
    assert text.count("{") == text.count("}")
