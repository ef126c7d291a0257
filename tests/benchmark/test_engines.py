"""Two servers beside each other, by the names of their engines."""

from fake_triton import message, script, serving
from scripts import script_of
from step_audio_benchmark.load import Level
from step_audio_benchmark.report import tables
from step_audio_benchmark.run import Plan
from step_audio_benchmark.workload import Workload


async def test_each_is_asked_in_turns_and_ours_is_divided_by_the_other():
    answer = script(message(1, 2), message(3, final=True))
    plan = Plan(Workload((), (), output_tokens=3), [Level(concurrency=1)], rounds=2, requests=3)
    async with serving(answer, answer) as [(theirs, first, _), (ours, second, _)]:
        cells = await script_of("benchmarks/engines.py").compare({"vLLM": first, "ours": second}, plan)
    assert [(cell.target, cell.round) for cell in cells] == [("vLLM", 0), ("ours", 0), ("vLLM", 1), ("ours", 1)]
    warm_up = 4
    for fake in (theirs, ours):
        assert sum(kind == "generate" for kind, *_ in fake.seen) == warm_up + 2 * 3
    assert "| ours / vLLM |" in tables(cells)
