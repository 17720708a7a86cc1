"""The language models among the cases of `record_references.py`: one for each thing that a family can get wrong.

Texts are longer than every window and than the contexts from which a rope scaling changes, so that each of them shows.
"""

from dataclasses import dataclass
from typing import Any

WIDTHS = {
    "vocab_size": 72,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
NEOX = {key: value for key, value in WIDTHS.items() if key != "num_key_value_heads"}
GEMMA = {**WIDTHS, "head_dim": 8}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {"short_factor": [1.0, 1.1, 1.3, 1.6], "long_factor": [1.0, 1.7, 3.0, 6.0]}


@dataclass(frozen=True)
class LanguageCase:
    """One checkpoint, one batch padded on the right, and prompts padded on the left that are continued."""

    name: str
    architecture: str  # a class of transformers
    config: dict[str, Any]
    shows: str
    tokens: int = 24
    prompts: tuple[int, ...] = (12, 7, 4)  # their lengths
    # transformers lets the longest text of a batch decide the scaling of all: record each text by itself.
    one_by_one: bool = False


def case(name: str, architecture: str, shows: str, base: dict[str, Any] = WIDTHS, **changes: Any) -> LanguageCase:
    options = {key: changes.pop(key) for key in ("tokens", "prompts", "one_by_one") if key in changes}
    return LanguageCase(name, f"{architecture}ForCausalLM", {**base, **changes}, shows, **options)


def rope(kind: str, theta: float = 100.0, **settings: Any) -> dict[str, Any]:
    """A low theta, so that more than the first pair turns within a short text."""
    return {"rope_type": kind, "rope_theta": theta, **settings}


LANGUAGE_CASES = (
    case("llama", "Llama", "the plain model: grouped heads, a head of its own, 3 layers", num_hidden_layers=3),
    case(
        "llama_tied_biases",
        "Llama",
        "tied head, biases everywhere, heads wider than their share, one kv head, gelu, eps 1e-3",
        tie_word_embeddings=True,
        attention_bias=True,
        mlp_bias=True,
        head_dim=12,
        num_key_value_heads=1,
        hidden_act="gelu",
        rms_norm_eps=1e-3,
    ),
    case("llama_linear", "Llama", "linear rope", rope_parameters=rope("linear", factor=4.0)),
    case(
        "llama_dynamic",
        "Llama",
        "dynamic rope: theta grows with texts of more than 8 tokens",
        rope_parameters=rope("dynamic", factor=2.0),
        max_position_embeddings=8,
        one_by_one=True,
    ),
    case(
        "llama3",
        "Llama",
        "Llama 3.1's rope, with pairs of all three kinds",
        rope_parameters={**LLAMA3, "rope_theta": 500.0, "original_max_position_embeddings": 24},
        head_dim=16,
    ),
    case(
        "llama_yarn",
        "Llama",
        "YaRN with its own attention factor",
        rope_parameters=rope("yarn", factor=4.0, original_max_position_embeddings=32, beta_fast=8.0, beta_slow=1.0),
        head_dim=16,
    ),
    case(
        "llama_yarn_mscale",
        "Llama",
        "YaRN, not truncated, factor by mscale",
        rope_parameters=rope(
            "yarn",
            factor=4.0,
            original_max_position_embeddings=32,
            beta_fast=6.0,
            truncate=False,
            mscale=0.7,
            mscale_all_dim=1.3,
        ),
        head_dim=16,
    ),
    case("mistral", "Mistral", "a window of 6 in every layer, 3 layers", sliding_window=6, num_hidden_layers=3),
    case("mistral_no_window", "Mistral", "no window, head_dim given", sliding_window=None, head_dim=16),
    case("qwen2", "Qwen2", "biases of q, k, v; tied", tie_word_embeddings=True),
    case(
        "qwen2_window",
        "Qwen2",
        "full attention in two layers, a window of 5 in three",
        num_hidden_layers=5,
        use_sliding_window=True,
        sliding_window=5,
        max_window_layers=2,
    ),
    case("qwen3", "Qwen3", "each head's queries and keys normed", head_dim=12, num_hidden_layers=3),
    case(
        "qwen3_yarn",
        "Qwen3",
        "YaRN, biases, tied",
        head_dim=16,
        attention_bias=True,
        tie_word_embeddings=True,
        rope_parameters=rope("yarn", factor=4.0, original_max_position_embeddings=32),
    ),
    case(
        "qwen3_moe",
        "Qwen3Moe",
        "6 experts, 2 chosen, their weights made to sum to one",
        head_dim=8,
        num_experts=6,
        num_experts_per_tok=2,
        moe_intermediate_size=12,
        norm_topk_prob=True,
    ),
    case(
        "qwen3_moe_plain",
        "Qwen3Moe",
        "3 of 4 experts chosen, weights as they are, a window",
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=3,
        moe_intermediate_size=12,
        use_sliding_window=True,
        sliding_window=6,
    ),
    case("gemma", "Gemma", "scaled embeddings, norms around one, tied", GEMMA, num_key_value_heads=1),
    case(
        "gemma2",
        "Gemma2",
        "windows of 6 by turns, soft caps that bite, five layers, a scale of its own",
        GEMMA,
        num_hidden_layers=5,
        sliding_window=6,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=2.0,
        query_pre_attn_scalar=20,
    ),
    case(
        "gemma3",
        "Gemma3",
        "two turns of five local layers and a global one, and two more; two ropes, linear scaling of the global one",
        {**GEMMA, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1},
        num_hidden_layers=14,
        sliding_window=5,
        query_pre_attn_scalar=8,
        rope_parameters={
            "full_attention": rope("linear", theta=1000.0, factor=2.0),
            "sliding_attention": rope("default", theta=50.0),
        },
    ),
    case(
        "smollm3",
        "SmolLM3",
        "every fourth layer without positions, six layers, tied",
        num_hidden_layers=6,
        intermediate_size=24,
    ),
    case(
        "smollm3_window",
        "SmolLM3",
        "every second layer without positions but with a window, untied",
        num_hidden_layers=4,
        no_rope_layer_interval=2,
        use_sliding_window=True,
        sliding_window=6,
        tie_word_embeddings=False,
    ),
    case("phi3", "Phi3", "q, k, v and gate, up in one tensor each, grouped heads, a window", sliding_window=7, num_hidden_layers=3),
    case(
        "phi3_longrope",
        "Phi3",
        "LongRoPE on half of each head: texts on both sides of 8 tokens, prompts all beyond",
        rope_parameters=rope("longrope", partial_rotary_factor=0.5, **LONG),
        original_max_position_embeddings=8,
        hidden_size=64,
        prompts=(14, 11, 9),
        one_by_one=True,
    ),
    case(
        "olmo2",
        "Olmo2",
        "norms after attention and mlp, all queries and keys normed together",
        num_hidden_layers=3,
        rms_norm_eps=1e-5,
    ),
    LanguageCase(
        "gpt2",
        "GPT2LMHeadModel",
        {
            "vocab_size": 72,
            "n_embd": 32,
            "n_layer": 3,
            "n_head": 4,
            "n_positions": 80,
            "initializer_range": 0.2,
            "bos_token_id": 1,
            "eos_token_id": None,
            "pad_token_id": 0,
        },
        "learned positions, layer norms, kernels as they are stored, tied",
    ),
    LanguageCase(
        "gpt2_inner",
        "GPT2LMHeadModel",
        {
            "vocab_size": 72,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 2,
            "n_inner": 20,
            "n_positions": 80,
            "initializer_range": 0.2,
            "activation_function": "relu",
            "scale_attn_weights": False,
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": None,
            "pad_token_id": 0,
        },
        "an inner width, relu, unscaled scores, a head of its own",
    ),
    case(
        "gpt_neox",
        "GPTNeoX",
        "attention and mlp side by side, half of each head turned, heads interleaved",
        NEOX,
        rope_parameters=rope("default", partial_rotary_factor=0.5),
        num_hidden_layers=3,
    ),
    case(
        "gpt_neox_sequential",
        "GPTNeoX",
        "one after the other, tied, no attention biases, a quarter turned",
        NEOX,
        use_parallel_residual=False,
        tie_word_embeddings=True,
        attention_bias=False,
        hidden_act="gelu_fast",
    ),
)
