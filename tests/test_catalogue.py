"""What the training-free part has to serve, against what `fairlead methods --json` lists."""

import json

import pytest
from typer.testing import CliRunner

from fairlead.cli import app

REQUIRED = {
    # combine rules and schedules
    "S001": "independent condition and time-step guidance",
    "S002": "CFG++",
    "S003": "CFG as predictor-corrector",
    "S004": "weight schedulers",
    "S005": "semantic-aware CFG",
    "S006": "classifier-free guidance",
    "S016": "adaptive projected guidance",
    "S020": "noise-damped CFG (ScaleCrafter)",
    "S031": "guided flows",
    "S035": "rescaled CFG for audio (EzAudio)",
    "S036": "autoguidance",
    "S045": "energy composition with MCMC (Reduce, reuse, recycle)",
    "S048": "frequency-aware CFG (FreCaS)",
    "S049": "progressive CFG (Consistent123)",
    "S051": "model-based guidance (SINE)",
    "S076": "CFG in an unbounded latent space",
    "S082": "saliency-aware noise blending (MagicFusion)",
    "S096": "saliency-adaptive noise fusion (Face-diffuser)",
    "S102": "guidance off at high-resolution scales (Switti)",
    "S107": "noise refresh and rising scale (RectifiedHR)",
    "S110": "CFG rescale and zero terminal SNR",
    "S115": "condition-annealed sampling",
    "S120": "reflected diffusion",
    "XC1": "guidance interval",
    "XC2": "CFG-Zero*",
    "XC3": "tangential damping",
    "XC4": "frequency-decoupled guidance",
    "XC5": "static and dynamic thresholding",
    "XC6": "Perp-Neg",
    "XC7": "negative prompts",
    "XC8": "skip-layer guidance",
    "XC9": "Feynman-Kac correctors",
    "XC10": "Feynman-Kac steering",
    "XC11": "norm-matched CFG, MAMBO-G",
    "SKIM": "skimmed CFG",
    # multi-condition guidance
    "S023": "double-condition CFG for image-to-video (DreamVideo)",
    "S030": "history guidance",
    "S038": "online negative samples (S3Diff)",
    "S040": "null as pure noise (VIDIM)",
    "S046": "conditional radiograph rotation (RadRotator)",
    "S050": "style interpolation (DiffuseStyleGesture)",
    "S059": "nested and independent CFG (DiffPoseTalk)",
    "S060": "CFG with a condition mask (DiffBatt)",
    "S062": "graph CFG (InstructG2I)",
    "S063": "dual CFG (VoiceLDM)",
    "S066": "joint text-garment CFG (Magic Clothing)",
    "S072": "partial-coordinate CFG (InterHandGen)",
    "S081": "product of experts (Listen, denoise, action)",
    "S083": "multi-conditional CFG (SpaText)",
    "S093": "text-to-motion CFG (Diffusion Motion)",
    "S094": "interleaved CFG (Re-Imagen)",
    "S097": "subject, session and class conditions (EEG)",
    "S099": "mixture of four branches (ReMoDiffuse)",
    "S100": "static camera as null (CMG)",
    "S108": "split CFG (Fashion-VDM)",
    "S121": "joint image-text CFG (STIV)",
    "S122": "garment-only CFG (OOTDiffusion)",
    "XM1": "nested image-then-text CFG (InstructPix2Pix)",
    "XM2": "composable diffusion",
    "XM3": "averaged views (MultiDiffusion)",
    "XM4": "guess mode (ControlNet)",
    # perturbations
    "S022": "smoothed energy guidance",
    "S027": "self-attention and blur guidance",
    "S029": "perturbed-attention guidance",
    "S034": "importance-based token merging",
    "S065": "style-based CFG (StyleStudio)",
    "XP3": "normalised attention guidance",
    # energies
    "S008": "gradient-free classifier guidance",
    "S025": "elucidated classifier guidance (EluCD)",
    "S056": "guidance in a noised feature space, inpainting (GLIDE)",
    "S079": "norm-based classifier guidance (Guided-TTS 2)",
    "S105": "gradient-skipping steering of flows (FlowChef)",
    "S128": "training-free guidance (TFG) and its corners",
    "S131": "anchored guidance of whole trajectories (RectifID)",
    "S132": "layout energies on attention maps (LLM-grounded Video Diffusion)",
    "S206": "discriminative class tokens",
    "S214": "Dreamguider",
    "XP1": "classifier guidance",
    "XP2": "universal guidance",
    # tokens
    "S013": "soft value-based decoding, discrete side (SVDD)",
    "S033": "Bayesian flow networks (ChemBFN)",
    "S044": "improved VQ-Diffusion",
    "S068": "Dirichlet flow matching",
    "S089": "unsupervised CFG of masked language models",
    "S129": "simple guidance for discrete diffusion (D-CFG, D-CBG)",
    "XD6": "MaskGIT decoding with CFG",
    "XD7": "D3PM posteriors",
    "XD8": "guidance on rates, TAG",
    "XD9": "normalised masked guidance",
    # models that write token by token
    "S011": "objects in the prompt against hallucination (MARINE)",
    "S012": "condition contrastive alignment (CCA)",
    "S037": "more specific captions",
    "S042": "triple CFG of speech (VoxInstruct)",
    "S043": "CFG of audio codes (AudioGen)",
    "S054": "masked image as null of sound (Visual Echoes)",
    "S057": "random text as null, at every few tokens (SSR-Speech)",
    "S058": "null through an adapter (MiniGPT-5)",
    "S074": "codec speech with a delay pattern (CoVoC)",
    "S091": "text model as null of translation with images (ZeroMMT)",
    "S109": "action logits of a policy (STEVE-1)",
    "S112": "double CFG (MusicGen-Style)",
    "S126": "two token streams (Make-A-Scene)",
    "S138": "CAIF",
    "S153": "meaning as trajectories",
    "S281": "text that matches a regular expression (Outlines)",
    "XD1": "stay on topic with CFG",
    "XD2": "context-aware decoding",
    "XD3": "contrastive decoding",
    "XD4": "DExperts",
    "XD5": "PPLM and FUDGE",
    # policies and solvers
    "S014": "Adaptive Guidance, LinearAG",
    "S019": "CFG-Cache (FasterCache)",
    "S064": "residual CFG (StreamDiffusion)",
    "S088": "oscillating guidance, dynamic clipping (Imagen Video)",
    "S113": "dynamic compensation (DC-Solver)",
    "XA4": "DPM-Solver++(2M)",
    "XA5": "UniPC",
}
"""Ids of the catalogue, each with what it is. CFG-parallel, XA3, is an option of `fl.sample`."""

NAMED = {
    "dps": "S128",
    "lgd": "S128",
    "mpgd": "S128",
    "freedom": "S128",
    "ugd": "S128",
    "tfg": "S128",
    "recurrence": "XP2",
    "repaint": "S056",
    "svdd": "S013",
    "mcmc": "S045",
    "reflected": "S120",
}
"""Special cases and samplers that a paper is served by, by the name that users look for."""


@pytest.fixture(scope="module")
def rows():
    result = CliRunner().invoke(app, ["methods", "--json"])
    assert result.exit_code == 0
    return json.loads(result.stdout)


@pytest.mark.parametrize("id_", REQUIRED)
def test_is_served(id_, rows):
    listed = {i for row in rows for i in row["ids"]}
    assert id_ in listed, f"no method serves {id_}: {REQUIRED[id_]}"


@pytest.mark.parametrize("name", NAMED)
def test_is_called_by_its_name(name, rows):
    (row,) = [row for row in rows if row["name"] == name]
    assert NAMED[name] in row["ids"]
