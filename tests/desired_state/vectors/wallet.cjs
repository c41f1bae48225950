// A JavaScript wallet (ethers v6) as a peer: typed data on standard input, its digest and signature on standard output.
// Input: {"key": "0x...", "typed": [{types, domain, primaryType, message}]}; needs `npm install ethers`.
const { Wallet, TypedDataEncoder, verifyTypedData, version } = require("ethers");

async function main() {
  const chunks = [];
  for await (const chunk of process.stdin) chunks.push(chunk);
  const { key, typed, signatures } = JSON.parse(Buffer.concat(chunks).toString());
  const wallet = new Wallet(key);
  const answers = [];
  for (const [index, { types, domain, message }] of typed.entries()) {
    const { EIP712Domain, ...own } = types; // ethers derives the domain's type from its fields
    answers.push({
      digest: TypedDataEncoder.hash(domain, own, message),
      signature: await wallet.signTypedData(domain, own, message),
      recovered: signatures ? verifyTypedData(domain, own, message, signatures[index]) : null,
    });
  }
  process.stdout.write(JSON.stringify({ library: `ethers ${version}`, address: wallet.address, answers }));
}

main();
