"""No two things share a name: the public names of all rooms, but for those that mean the same."""

import ast
from collections import defaultdict
from pathlib import Path

import gradlab

PACKAGE = Path(gradlab.__file__).parent

# A name that several rooms have on purpose, and what it means in all of them.
SHARED = {
    "T": "a type variable",
    "add": "the sum of two numbers of the room's kind",
    "entries": "the keys of a config class, of the suite, of a run",
    "latch": "the unit x = w tanh x: recurrent.latch is the cell, clipping.latch its fixed point",
    "Loop": "a loop over steps: as an audit opens it, and as a chain",
    "lengths": "the mean square of h in each layer, of a plain or a residual network",
    "compare": "what two differ in: a clip and the exact formula, two runs",
    "load": "from disk: an experiment from its file, a run from its folder",
    "log_norms": "log |P_k|: of a chain, and of one of its segments",
    "log_singular_values": "log sigma_i of a product: rounded, and enclosed",
    "lyapunov_exponents": "what is measured, and what theory predicts",
    "matmul": "the matrix product of two arrays of the room's kind",
    "measure": "the norm over all leaves: in any range, and quick",
    "mean": "a mean with its standard error, and the claim about it",
    "multiply": "the product of two numbers of the room's kind",
    "norm": "the Euclidean norm: of an array in any range, of a pytree",
    "product": "w^depth as a Jacobian is multiplied out, and as theory has it",
    "Run": "one run: as the page finds it on disk, as Python holds it",
    "run": "a run: as a program that ends with a status, and from Python",
    "quotient": "of plain numbers to a roundoff; tau over the norm: in any range, and quick",
    "ratio": "of plain numbers, 1 where they are equal; of one norm and a larger one",
    "is_within": "whether a norm is at most tau: in any range, and quick",
    "clip": "what clips: of leaves in a quick way, of a pytree at the door",
    "read": "typed values from plain ones: a config, the settings, both; a dataset from its file",
    "singular_values": "those of a product, and of the matrix that it is reduced to",
    "singular_vectors": "the face of the closed room hands on what the room computes",
    "structure": "what must be equal for one compiled program: of configs, of points",
    "sweep": "a sweep: of Hydra's overrides, and from Python",
    "slope": "a least-squares slope, the claim about it, and what theory predicts for it",
    "start": "what a loop over layers starts from: what belongs to the empty product",
    "states": "what layers map: along a chain, and what a named network starts from",
    "weight_gradients": "by the literal products, and by the fast path",
    "with_columns": "what belongs to factors, with so many columns more",
    "restored": "what a record says of one experiment: power, seeds",
    "write": "whole or not at all: a record, a dataset",
    "Loss": "from what a model gives to a number",
    "check": "raises where something cannot go on: a batch at the door, a program in memory",
    "verdicts": "what is judged of a model, and of a run",
    "report": "what watches in an optimiser saw, in words: of a clip, of a whole optimiser",
    "scalars": "the same as one row of a log",
    "quantile": "of chance at a stated rate, and of a histogram",
    "evaluate": "a program's values, and a run's dataset",
    "Comparison": "what two differ in: audits, a clip and the exact formula",
    "text": "as a person reads it: an audit, its comparison, help",
    "Verdict": "a judged sentence: on a model, on a claim at all points of a sweep",
    "wide": "the format of the arithmetic on leaves",
    "weights": "the matrices that a model is drawn with",
    "Weights": "the matrices of a layer, and what was measured of them",
    "Draw": "how weights are drawn: as a law, and as a function",
    "lstm": "the network that is deep in time, and the cell with an input at each step",
    "plain": "without gates, and without a branch",
    "log_norm": "of any array: of reals, and of complex numbers by modulus",
    "spread": "the relative variance of squares: of reals, and of complex numbers",
    "first_steps": "by hand: of a training, and of several networks that it trains",
    "overlaps": "of two tokens' rows of attention: as drawn, and their law",
    "P": "of a generic function: its parameters",
    "R": "of a generic function: what it returns",
    "times": "a product with a number: of any range, of a rule",
    # One meaning each, told apart by the room, which is always written with them.
    "gain": "checks_flow.gain judges a model's; claim.gain is about pairs of a run's",
    "written": "shelves.written of an experiment's group; composition.written in config files",
    "alone": "power.alone: a mutation in a program of its own; join.alone: one point of a sweep",
    "counted": "report.counted says how many; histogram.counted has one value more",
    "places": "singular.places of layers in a model; build.places of offers on a page",
    "Axis": "panels.Axis of a drawn figure; points.Axis of a sweep",
    "Branch": "ensembles.Branch is a residual layer; lesson.Branch is what one leaves of a number",
    "exponent": "estimate.exponent of a power law; lag.exponent of a lag's growth",
    "moved": "one_layer.moved of lengths; changes.moved of a parameter; still.moved is drawn",
    "number": "report.number writes one; panels.number reads one off a tick",
    "panels": "figures.panels begins a figure; page.panels finds them in one",
    "At": "program.At is a place in a jaxpr; lesson.At a number's place on a page",
    "Change": "wrong.Change of a function; changes.Change of a model's parameters",
    "Columns": "balls.Columns are enclosed; linearisation.Columns are tangents side by side",
    "command": "command.command is the audit's shell; loading.command is what a run was typed as",
    "Entry": "records.Entry of an experiment's calibration; schema.Entry of a config",
    "formats": "checks_flow.formats judges a model's; grid.formats lists those of an experiment",
    "groups": "variants.groups of mutations; composition.groups of configs",
    "Kind": "verdicts.Kind of a finding; recurrent.Kind of a cell",
    "KINDS": "verdicts.KINDS of findings; offers.KINDS of places on a page",
    "Layer": "layers.Layer is found in a program; chain.Layer is a function",
    "Made": "records.Made tells with what; networks.Made tells of what",
    "Map": "singular.Map is linear; lesson.Map is drawn",
    "Program": "program.Program is traced; programs.Program is compiled for a sweep",
    "Rule": "clip_rules.Rule is a way to clip; gauss.Rule is a quadrature",
    "Step": "one operation: of a traced program, of a linearisation, of factors",
    "Chain": "models.chain; lesson.Chain is the figure of one",
    "key": "schema.key describes a key of a config; figures.key is the key to a panel's marks",
    "named": "dataset.named gives axes their names; figures.named gives a line its name",
    "scale": "scaled.scale takes the size out of numbers; fault.scale puts a wrong factor in",
}


def defined(path: Path) -> set[str]:
    """The public names that a module defines at its top."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return {name for name in names if not name.startswith("_")}


def test_a_name_means_one_thing_or_stands_in_the_table() -> None:
    rooms = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for name in defined(path):
            rooms[name].append(str(path.relative_to(PACKAGE)))
    twice = {name: where for name, where in rooms.items() if len(where) > 1}
    assert twice.keys() == SHARED.keys(), {
        name: twice.get(name, "in one room only") for name in twice.keys() ^ SHARED.keys()
    }
